"""LangChain."""

import base64
import json
import struct

from tests.conformance.rules.structure import NAMED, PERSON, WEATHER
from tests.conformance.target import Body, Target, text_of

CHAT = "/v1/chat/completions"
QUESTION: list[Body] = [{"role": "user", "content": "How is the weather in Paris?"}]


def usage_of_streams_is_read(target: Target) -> None:
    """With `stream_usage` the last chunk has no choices and the usage, with the cached tokens."""
    chunks = target.chunks_of(
        CHAT,
        {
            "messages": [{"role": "user", "content": "Say hello."}],
            "stream_options": {"include_usage": True},
            "max_completion_tokens": 6,
            "temperature": 0,
        },
    )
    assert text_of(chunks)
    assert chunks[-1]["choices"] == []
    usage = chunks[-1]["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["prompt_tokens_details"]["cached_tokens"] <= usage["prompt_tokens"]


def facts_of_an_answer_are_read(target: Target) -> None:
    """The facts that it keeps of an answer are there: id, model, fingerprint, finish reason, log-probabilities."""
    answer = target.answer_to(
        CHAT, {"messages": QUESTION, "n": 2, "logprobs": True, "max_completion_tokens": 4, "stream": False}
    )
    assert (answer["model"], answer["object"]) == (target.model, "chat.completion")
    assert answer["id"].startswith("chatcmpl-")
    assert answer["system_fingerprint"]
    assert len(answer["choices"]) == 2
    for choice in answer["choices"]:
        assert choice["finish_reason"] in ("stop", "length")
        assert choice["logprobs"]["content"]


def structured_output_by_schema(target: Target) -> None:
    """`with_structured_output` by schema returns an object of it."""
    form = {"type": "json_schema", "json_schema": {"name": "Person", "schema": PERSON, "strict": True}}
    request = {"messages": [{"role": "user", "content": "Describe a person."}], "response_format": form}
    message = target.answer_to(CHAT, request | {"max_completion_tokens": 100, "stream": False})["choices"][0]["message"]
    assert set(json.loads(message["content"])) == {"name", "age"}
    assert not message.get("refusal")


def structured_output_by_call(target: Target) -> None:
    """`with_structured_output` by function calling makes one call of the named function, streamed and not."""
    request: Body = {
        "messages": QUESTION,
        "tools": [{"type": "function", "function": WEATHER["function"] | {"strict": True}}],
        "tool_choice": NAMED,
        "parallel_tool_calls": False,
        "max_completion_tokens": 120,
        "temperature": 0,
    }
    (call,) = target.answer_to(CHAT, request | {"stream": False})["choices"][0]["message"]["tool_calls"]
    parts = [
        part["function"].get("arguments") or ""
        for chunk in target.chunks_of(CHAT, request)
        for part in chunk["choices"][0]["delta"].get("tool_calls") or []
    ]
    assert json.loads(call["function"]["arguments"]).keys() == {"city", "unit"}
    assert "".join(parts) == call["function"]["arguments"]


def an_agent_goes_on(target: Target) -> None:
    """An agent's history has null contents beside calls, and several results in one turn."""
    functions = [{"name": "get_weather", "arguments": json.dumps({"city": city})} for city in ("Paris", "Rome")]
    calls = [{"type": "function", "id": f"call_{i}", "function": one} for i, one in enumerate(functions)]
    results = [{"role": "tool", "tool_call_id": call["id"], "content": "21 degrees"} for call in calls]
    messages = [*QUESTION, {"role": "assistant", "content": None, "tool_calls": calls}, *results]
    request = {"messages": messages, "tools": [WEATHER], "tool_choice": "none", "max_completion_tokens": 8}
    both = target.answer_to(CHAT, request)
    assert isinstance(both["choices"][0]["message"]["content"], str)
    one = target.answer_to(CHAT, request | {"messages": messages[:-1]})
    assert both["usage"]["prompt_tokens"] > one["usage"]["prompt_tokens"]


def embeddings_are_read_as_base64(target: Target) -> None:
    """OpenAIEmbeddings reads base64; without its own tokenizer the inputs are texts."""
    answer = target.answer_to("/v1/embeddings", {"input": ["one", "two"], "encoding_format": "base64"})
    vectors = [base64.b64decode(entry["embedding"]) for entry in answer["data"]]
    assert len({len(vector) for vector in vectors}) == 1
    assert vectors[0] != vectors[1]
    numbers = struct.unpack(f"<{len(vectors[0]) // 4}f", vectors[0])
    assert abs(sum(number * number for number in numbers) - 1) < 1e-3
