"""Anthropic's messages."""

import json
from typing import Any

from tests.conformance.rules.structure import PERSON
from tests.conformance.target import Body, Target

PATH = "/v1/messages"
COUNT = "/v1/messages/count_tokens"
ONE_CALL: Body = {"type": "any", "disable_parallel_tool_use": True}
WEATHER: Body = {
    "name": "get_weather",
    "description": "The weather of a city.",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}},
        "required": ["city"],
        "additionalProperties": False,
    },
}


def messages_are_answered(target: Target) -> None:
    """A message has an id, a role, blocks, a reason of its end and its usage."""
    message = _message(target)
    assert message["id"].startswith("msg_")
    assert (message["type"], message["role"], message["model"]) == ("message", "assistant", target.model)
    assert [block["type"] for block in message["content"]] == ["text"]
    assert message["content"][0]["text"]
    assert message["stop_reason"] in ("end_turn", "max_tokens")
    assert message["stop_sequence"] is None
    usage = message["usage"]
    assert usage["input_tokens"] + usage["cache_read_input_tokens"] > 0
    assert usage["output_tokens"] > 0


def max_tokens_is_required(target: Target) -> None:
    """`max_tokens` and `messages` are required."""
    body: Body = {"model": target.model, "messages": _said("hi")}
    assert "max_tokens" in _refused(target, body)
    assert "messages" in _refused(target, {"model": target.model, "max_tokens": 4})


def blocks_are_texts(target: Target) -> None:
    """A content is the same as a string and as text blocks; so is `system`."""
    block = {"type": "text", "text": "Say hello.", "cache_control": {"type": "ephemeral"}}
    in_blocks = _message(
        target, messages=[{"role": "user", "content": [block]}], system=[{"type": "text", "text": "A."}]
    )
    assert in_blocks["content"] == _message(target, system="A.")["content"]


def stop_sequences_are_named(target: Target) -> None:
    """A stop sequence ends the text, is not part of it, and is named."""
    text = _text(_message(target))
    stopped = _message(target, stop_sequences=["\x00never", text[2:4]])
    assert stopped["stop_reason"] == "stop_sequence"
    assert stopped["stop_sequence"] == text[2:4]
    assert _text(stopped) == text[: text.index(text[2:4])]


def lengths_are_reasons(target: Target) -> None:
    """`max_tokens` ends a message with that reason."""
    message = _message(target, max_tokens=2)
    assert message["stop_reason"] == "max_tokens"
    assert message["usage"]["output_tokens"] == 2


def large_limits_are_clamped(target: Target) -> None:
    """`max_tokens` beyond the context is limited to the room, not refused."""
    message = _message(target, max_tokens=10_000_000, stop_sequences=[" ", "a", "e", "."])
    assert message["stop_reason"] in ("stop_sequence", "end_turn")


def long_prompts_are_named(target: Target) -> None:
    """A prompt too long is refused in the words at which agents compact a conversation."""
    message = _refused(target, _body(target, messages=_said("word " * 200_000)))
    numbers = [word for word in message.split() if word.isdigit()]
    assert message == f"prompt is too long: {numbers[0]} tokens > {numbers[1]} maximum"
    assert int(numbers[0]) > int(numbers[1])


def errors_have_their_form(target: Target) -> None:
    """Errors are Anthropic's: invalid_request_error, not_found_error, authentication_error."""
    response = target.post(PATH, _body(target, temperature="warm"))
    assert (response.status_code, _error(response.json())["type"]) == (400, "invalid_request_error")
    response = target.post(PATH, _body(target) | {"model": "no-such-model"})
    assert (response.status_code, _error(response.json())["type"]) == (404, "not_found_error")
    if target.has_key:
        response = target.http.post(PATH, json=_body(target), headers={"authorization": "Bearer wrong-key"})
        assert (response.status_code, _error(response.json())["type"]) == (401, "authentication_error")


def both_headers_of_keys_are_taken(target: Target) -> None:
    """The key is taken from `x-api-key` and from `Authorization`; `?beta=true` changes nothing."""
    key = target.http.headers.get("authorization", "Bearer none").removeprefix("Bearer ")
    headers = {"authorization": "", "x-api-key": key, "anthropic-version": "2023-06-01", "anthropic-beta": "some-beta"}
    response = target.http.post(f"{PATH}?beta=true", json=_body(target), headers=headers)
    assert response.status_code == 200
    assert response.json()["content"] == _message(target)["content"]


def streams_have_their_events(target: Target) -> None:
    """A stream has message_start, blocks, message_delta and message_stop, each with its name, and no [DONE]."""
    events = _events(target)
    kinds = [event["type"] for event in events if event["type"] != "ping"]
    deltas = kinds.count("content_block_delta")
    assert kinds == [
        "message_start",
        "content_block_start",
        *["content_block_delta"] * deltas,
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    start = events[0]["message"]
    assert (start["content"], start["stop_reason"]) == ([], None)
    assert start["usage"]["input_tokens"] >= 0


def streams_say_the_same(target: Target) -> None:
    """A streamed message is the whole one, with its reason and its usage."""
    whole, events = _message(target), _events(target)
    text = "".join(event["delta"]["text"] for event in events if event["type"] == "content_block_delta")
    assert text == _text(whole)
    last = next(event for event in events if event["type"] == "message_delta")
    assert last["delta"] == {"stop_reason": whole["stop_reason"], "stop_sequence": whole["stop_sequence"]}
    assert last["usage"]["output_tokens"] == whole["usage"]["output_tokens"]


def errors_come_before_the_stream(target: Target) -> None:
    """An error before the first token of a stream is a plain HTTP error."""
    response = target.post(PATH, _body(target, stream=True, top_p=5))
    assert response.status_code == 400
    assert _error(response.json())["type"] == "invalid_request_error"


def tools_are_called(target: Target) -> None:
    """`tool_choice` any, or a tool by name, makes a block of type tool_use with an input of its schema."""
    for choice in (ONE_CALL, {"type": "tool", "name": "get_weather"}):
        message = _message(target, tools=[WEATHER], tool_choice=choice, max_tokens=80)
        call = next(block for block in message["content"] if block["type"] == "tool_use")
        assert call["name"] == "get_weather"
        assert set(call["input"]) == {"city"}
        assert message["stop_reason"] == "tool_use"


def streamed_calls_are_whole(target: Target) -> None:
    """A streamed call begins with its id, its name and an empty input, and its parts of JSON make the input."""
    fields: Body = {"tools": [WEATHER], "tool_choice": ONE_CALL, "max_tokens": 80}
    events = _events(target, **fields)
    (start,) = (event["content_block"] for event in events if event["type"] == "content_block_start")
    assert start["id"]
    assert (start["name"], start["input"]) == ("get_weather", {})
    parts = [event["delta"]["partial_json"] for event in events if event["type"] == "content_block_delta"]
    whole = _message(target, **fields)
    assert json.loads("".join(parts)) == whole["content"][0]["input"]


def results_are_read(target: Target) -> None:
    """Calls, results and texts of a conversation are read, in any order of a user's blocks."""
    use = {"type": "tool_use", "id": "toolu_1", "name": "get_weather", "input": {"city": "Rome"}}
    result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": "Sunny."}]}
    turns = [*_said("How is the weather?"), {"role": "assistant", "content": [use]}]
    counts = []
    for blocks in ([result], [result, {"type": "text", "text": "Be brief."}], [{"type": "text", "text": "A"}, result]):
        messages = [*turns, {"role": "user", "content": blocks}]
        assert _text(_message(target, messages=messages, tools=[WEATHER])) is not None
        counts.append(_count(target, messages=messages, tools=[WEATHER]))
    assert counts[0] < min(counts[1:])


def late_system_messages_are_read(target: Target) -> None:
    """A message of the role system is read where it stands, and the prefix before it stays cached."""
    story = "Once upon a time there was a sea. " * 12
    late: list[Body] = [*_said(story), {"role": "system", "content": "Answer in one word."}]
    assert _count(target, messages=late) > _count(target, messages=_said(story))
    _message(target, messages=late)
    longer = [*late, {"role": "assistant", "content": "Yes."}, *_said("And?")]
    assert _message(target, messages=longer)["usage"]["cache_read_input_tokens"] >= 64


def thoughts_come_back(target: Target) -> None:
    """Blocks of type thinking with a signature are accepted in the conversation."""
    thought = {"type": "thinking", "thinking": "Hm.", "signature": "c2lnbmF0dXJl"}
    turns = [
        *_said("hi"),
        {"role": "assistant", "content": [thought, {"type": "text", "text": "Hello."}]},
        *_said("Bye."),
    ]
    assert _text(_message(target, messages=turns))


def images_are_refused(target: Target) -> None:
    """An image is refused, not ignored, by a model of texts."""
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}}
    assert "content[0]" in _refused(target, _body(target, messages=[{"role": "user", "content": [image]}]))


def unknown_fields_are_named(target: Target) -> None:
    """An unknown field is refused and named; one of Anthropic's without effect is a warning."""
    assert "temprature" in _refused(target, _body(target, temprature=1))
    message = _message(target, metadata={"user_id": "a"}, service_tier="standard_only")
    assert ["metadata" in warning for warning in message["warnings"]] == [True]


def tokens_are_counted(target: Target) -> None:
    """count_tokens counts the prompt of the same message."""
    usage = _message(target)["usage"]
    assert _count(target) == usage["input_tokens"] + usage["cache_read_input_tokens"]
    assert _count(target, system="Be brief. " * 60) > _count(target)  # a template may have a text of its own


def schemas_are_kept(target: Target) -> None:
    """`output_config.format` with a schema makes the text one of it."""
    form = {"format": {"type": "json_schema", "schema": PERSON}}
    message = _message(target, messages=_said("Describe a person."), output_config=form, max_tokens=200)
    assert set(json.loads(_text(message))) == {"name", "age"}


def last_texts_are_continued(target: Target) -> None:
    """A last message of the assistant is continued."""
    turns = [*_said("Count to five."), {"role": "assistant", "content": "1, 2, 3,"}]
    message = _message(target, messages=turns)
    assert not _text(message).startswith("1")
    assert _count(target, messages=turns) > _count(target, messages=turns[:1])


def _said(text: str) -> list[Body]:
    return [{"role": "user", "content": text}]


def _body(target: Target, **fields: Any) -> Body:
    plain = {"model": target.model, "max_tokens": 12, "messages": _said("Say hello."), "temperature": 0}
    return plain | fields


def _message(target: Target, **fields: Any) -> Body:
    """Return the answer to a message, which must succeed."""
    response = target.post(PATH, _body(target, **fields))
    assert response.status_code == 200, f"status {response.status_code}: {response.text[:200]}"
    message: Body = response.json()
    assert message.get("content"), f"a message without blocks: {response.text[:100]}"
    return message


def _text(message: Body) -> str:
    return "".join(block["text"] for block in message["content"] if block["type"] == "text")


def _error(body: Body) -> Body:
    assert body["type"] == "error"
    error: Body = body["error"]
    assert isinstance(error["message"], str), "the message is no text"
    return error


def _refused(target: Target, body: Body) -> str:
    """Return the message of a request that must be refused."""
    response = target.post(PATH, body)
    assert response.status_code == 400, f"status {response.status_code} instead of 400"
    return str(_error(response.json())["message"])


def _events(target: Target, **fields: Any) -> list[Body]:
    """Return the events of a stream, without its comments."""
    response = target.post(PATH, _body(target, stream=True, **fields))
    assert response.status_code == 200, response.text[:200]
    assert response.headers["content-type"].startswith("text/event-stream"), "not an event stream"
    assert response.text.endswith("\n\n"), "the last event does not end with a blank line"
    blocks = [block.split("\n") for block in response.text[:-2].split("\n\n") if not block.startswith(":")]
    events: list[Body] = [json.loads(data.removeprefix("data: ")) for _, data in blocks]
    assert [name for name, _ in blocks] == [f"event: {event['type']}" for event in events]
    return events


def _count(target: Target, **fields: Any) -> int:
    body = {name: value for name, value in _body(target, **fields).items() if name not in ("max_tokens", "temperature")}
    response = target.post(COUNT, body)
    assert response.status_code == 200, response.text[:200]
    count: int = response.json()["input_tokens"]
    return count
