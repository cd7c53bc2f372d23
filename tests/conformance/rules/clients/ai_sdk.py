"""Vercel's AI SDK."""

import json

from tests.conformance.rules.structure import PERSON, WEATHER
from tests.conformance.target import Body, Target, text_of

CHAT = "/v1/chat/completions"
SCHEMA_MARK = "http://json-schema.org/draft-07/schema#"


def texts_are_streamed(target: Target) -> None:
    """Every chunk has a `delta` with at most one role, and the usage counts what was said."""
    request = {
        "messages": [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Say hello."}],
        "max_tokens": 8,
        "temperature": 0,
        "top_p": 1,
        "stream_options": {"include_usage": True},
    }
    chunks = target.chunks_of(CHAT, request)
    deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
    assert text_of(chunks)
    assert {delta["role"] for delta in deltas if delta.get("role")} == {"assistant"}
    assert chunks[-1]["usage"]["completion_tokens"] <= 8


def objects_have_schemas_as_zod_writes_them(target: Target) -> None:
    """An object is asked for with a schema as zod writes it, with `$schema` in it."""
    schema = {"$schema": SCHEMA_MARK, **PERSON}
    form = {"type": "json_schema", "json_schema": {"schema": schema, "name": "response", "strict": True}}
    request = {"messages": [{"role": "user", "content": "Describe a person."}], "response_format": form}
    text = text_of(target.chunks_of(CHAT, request | {"max_tokens": 100, "temperature": 0}))
    assert set(json.loads(text)) == {"name", "age"}


def calls_begin_with_id_and_name(target: Target) -> None:
    """The first part of a streamed call has its id and its function's name; without them it raises an error."""
    schema = {"$schema": SCHEMA_MARK, **WEATHER["function"]["parameters"]}
    tool = {"type": "function", "function": {"name": "weather", "description": "The weather", "parameters": schema}}
    request = {
        "messages": [{"role": "user", "content": "How is the weather in Paris?"}],
        "tools": [tool],
        "tool_choice": "required",
        "max_tokens": 120,
        "temperature": 0,
    }
    chunks = target.chunks_of(CHAT, request)
    parts = [part for chunk in chunks for part in chunk["choices"][0]["delta"].get("tool_calls") or []]
    seen: set[int] = set()
    for part in parts:
        if part["index"] not in seen:
            assert isinstance(part["id"], str)
            assert part["function"]["name"] == "weather"
        seen.add(part["index"])
    assert 0 in seen
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


def earlier_thoughts_come_back(target: Target) -> None:
    """Earlier thoughts come back as `reasoning_content`, beside a text and beside calls; no text is refused there."""
    call = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": "{}"}}
    messages: list[Body] = [
        {"role": "user", "content": "How is the weather?"},
        {"role": "assistant", "content": None, "reasoning_content": "I must look.", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "Sunny"},
        {"role": "assistant", "content": "It is sunny.", "reasoning_content": "That was easy."},
        {"role": "user", "content": "And tomorrow?"},
    ]
    answer = target.answer_to(CHAT, {"messages": messages, "max_tokens": 4})
    assert answer["choices"][0]["message"]["role"] == "assistant"
    messages[1]["reasoning_content"] = ["I must look."]
    target.refused(CHAT, {"messages": messages})


def errors_have_a_message(target: Target) -> None:
    """An error is an object with a `message`, from which it makes its own; a stream's too."""
    for stream in (False, True):
        error = target.refused_chat(stream=stream, temperature=9)
        assert "temperature" in error["message"]
        assert isinstance(error["type"], str)
