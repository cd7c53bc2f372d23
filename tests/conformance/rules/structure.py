"""Structured output and tools."""

import json
from typing import Any

from pydantic import BaseModel, Field

from tests.conformance.target import Body, Target, text_of

PERSON: Body = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 99},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
WEATHER: Body = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 12}, "unit": {"enum": ["C", "F"]}},
            "required": ["city", "unit"],
            "additionalProperties": False,
        },
    },
}
QUESTION: list[Body] = [{"role": "user", "content": "How is the weather in Paris?"}]
NAMED: Body = {"type": "function", "function": {"name": "get_weather"}}


def _schema(schema: Body) -> Body:
    return {"type": "json_schema", "json_schema": {"name": "thing", "schema": schema, "strict": True}}


def _calls(target: Target, **fields: Any) -> tuple[Body, list[Body]]:
    body = {"messages": QUESTION, "tools": [WEATHER], "max_tokens": 120} | fields
    (choice,) = target.chat(**body)["choices"]
    return choice, choice["message"].get("tool_calls") or []


def texts_are_free(target: Target) -> None:
    """`response_format` text changes nothing."""
    assert target.chat(response_format={"type": "text"})["choices"] == target.chat()["choices"]


def objects_are_objects(target: Target) -> None:
    """`json_object` makes the answer a JSON object."""
    (choice,) = target.chat(
        messages=[{"role": "user", "content": "Describe a person as short JSON."}],
        response_format={"type": "json_object"},
        max_tokens=300,
    )["choices"]
    if choice["finish_reason"] == "stop":
        assert isinstance(json.loads(choice["message"]["content"]), dict)
    else:
        assert choice["message"]["content"].lstrip().startswith("{")


def schemas_are_kept(target: Target) -> None:
    """`json_schema` makes the answer one of the schema, also at temperature 1, streamed and not."""
    fields: Body = {"response_format": _schema(PERSON), "max_tokens": 100}
    for seed in range(3):
        (choice,) = target.chat(**fields, temperature=1, seed=seed)["choices"]
        person = json.loads(choice["message"]["content"])
        assert set(person) == {"name", "age"}
        assert 0 <= person["age"] <= 99
        assert choice["finish_reason"] == "stop"
    assert set(json.loads(text_of(target.stream("/v1/chat/completions", **fields)))) == set(person)


def broken_schemas_are_refused(target: Target) -> None:
    """A schema that is none, and a format that is not known, are refused before anything runs."""
    target.refused_chat(response_format=_schema({"type": "nonsense"}))
    target.refused_chat(response_format={"type": "xml"})
    target.refused_chat(response_format={"type": "json_schema"})


def required_calls_are_made(target: Target) -> None:
    """`tool_choice` required, or a function by name, makes a call with arguments of its schema."""
    for tool_choice in ("required", NAMED):
        choice, calls = _calls(target, tool_choice=tool_choice)
        assert choice["finish_reason"] == "tool_calls", choice["finish_reason"]
        assert calls[0]["type"] == "function"
        assert calls[0]["id"]
        assert calls[0]["function"]["name"] == "get_weather"
        assert set(json.loads(calls[0]["function"]["arguments"])) == {"city", "unit"}


def calls_come_as_deltas(target: Target) -> None:
    """A streamed call begins with its id and name; its arguments follow in parts, under its index."""
    chunks = target.stream(
        "/v1/chat/completions", messages=QUESTION, tools=[WEATHER], tool_choice="required", max_tokens=120
    )
    deltas = [call for chunk in chunks for call in chunk["choices"][0]["delta"].get("tool_calls") or []]
    first = [call for call in deltas if call["index"] == 0]
    assert first[0]["id"]
    assert first[0]["function"]["name"] == "get_weather"
    assert not any(call.get("id") for call in first[1:])
    arguments = "".join(call["function"].get("arguments") or "" for call in first)
    assert set(json.loads(arguments)) == {"city", "unit"}
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


def no_tools_no_calls(target: Target) -> None:
    """`tool_choice` none makes no call."""
    choice, calls = _calls(target, tool_choice="none", max_tokens=8)
    assert not calls
    assert choice["finish_reason"] in ("stop", "length")


def one_call_at_a_time(target: Target) -> None:
    """`parallel_tool_calls` false makes at most one call."""
    _, calls = _calls(target, tool_choice="required", parallel_tool_calls=False)
    assert len(calls) == 1


def results_come_back(target: Target) -> None:
    """A call and its result may be sent back, and are read."""
    call = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'}}
    messages = [*QUESTION, {"role": "assistant", "content": None, "tool_calls": [call]}]
    messages.append({"role": "tool", "tool_call_id": "call_1", "content": "21 degrees"})
    usage = target.chat(messages=messages, tools=[WEATHER])["usage"]
    assert usage["prompt_tokens"] > target.chat(messages=QUESTION, tools=[WEATHER])["usage"]["prompt_tokens"]


def unknown_functions_are_refused(target: Target) -> None:
    """A `tool_choice` of a function that `tools` lacks, and one without tools, are refused."""
    other = {"type": "function", "function": {"name": "other"}}
    target.refused_chat(tools=[WEATHER], tool_choice=other)
    target.refused_chat(tool_choice="required")


def the_client_parses(target: Target) -> None:
    """The official client parses an answer into the class it was asked for."""

    class Person(BaseModel):
        name: str = Field(max_length=12)
        age: int

    answer = target.client.chat.completions.parse(
        model=target.model,
        messages=[{"role": "user", "content": "Describe a person."}],
        response_format=Person,
        max_tokens=120,
    )
    assert isinstance(answer.choices[0].message.parsed, Person)
