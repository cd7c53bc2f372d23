"""Messages of Anthropic's API: their events, and the message that a client gathers from them."""

import json
from typing import Any

from pydantic_core import from_json

from tests.server.openai.api import Api, Body

MESSAGES = "/v1/messages"
COUNT = "/v1/messages/count_tokens"
HI: list[Body] = [{"role": "user", "content": "hi"}]
PLAIN: Body = {"model": "fake", "max_tokens": 300, "messages": HI}
WEATHER: Body = {
    "name": "weather",
    "description": "The weather of a city.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
_PART = {"text_delta": "text", "thinking_delta": "thinking", "signature_delta": "signature"}


async def message_of(api: Api, **fields: Any) -> Body:
    """Return the message that answers "hi"."""
    response = await api.http.post(MESSAGES, json=PLAIN | fields)
    assert response.status_code == 200, response.text
    message: Body = response.json()
    return message


async def refused(api: Api, status: int = 400, path: str = MESSAGES, **fields: Any) -> str:
    """Return the message of an error with this status."""
    response = await api.http.post(path, json=PLAIN | fields)
    assert response.status_code == status, response.text
    return error_of(response.json())["message"]


def error_of(body: Body) -> dict[str, str]:
    """Return the error in the body of an error response."""
    assert set(body) == {"type", "error", "request_id"}
    assert body["type"] == "error"
    error: dict[str, str] = body["error"]
    assert set(error) - {"details"} == {"type", "message"}
    return error


async def message_events(api: Api, **fields: Any) -> list[Body]:
    """Return the events of the streamed message."""
    response = await api.http.post(MESSAGES, json=PLAIN | {"stream": True} | fields)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    return parsed_events(response.text)


def parsed_events(text: str) -> list[Body]:
    """Return the events of a stream; comments are left out."""
    assert text.endswith("\n\n")
    blocks = [block for block in text.removesuffix("\n\n").split("\n\n") if not block.startswith(":")]
    events = []
    for block in blocks:
        name, payload = block.split("\n")
        events.append(json.loads(payload.removeprefix("data: ")))
        assert name == f"event: {events[-1]['type']}"
    return events


def gathered(events: list[Body]) -> Body:
    """Return the message of a whole stream, whose events must be in their order."""
    first, *rest = events
    assert first["type"] == "message_start"
    message: Body = first["message"]
    assert message["content"] == []
    assert message["stop_reason"] is None
    open_index, arguments = None, ""
    assert [event["type"] for event in rest[-2:]] == ["message_delta", "message_stop"]
    for event in rest[:-2]:
        if event["type"] == "content_block_start":
            assert open_index is None
            assert event["index"] == len(message["content"])
            open_index, arguments = event["index"], ""
            message["content"].append(event["content_block"])
            assert not any(event["content_block"].get(name) for name in ("text", "thinking", "signature", "input"))
            continue
        assert event["index"] == open_index
        block = message["content"][-1]
        if event["type"] == "content_block_stop":
            if block["type"] == "tool_use":
                block["input"] = from_json(arguments or "{}", allow_partial=True)
            open_index = None
        elif event["delta"]["type"] == "input_json_delta":
            arguments += event["delta"]["partial_json"]
        else:
            name = _PART[event["delta"]["type"]]
            block[name] += event["delta"][name]
    assert open_index is None
    message |= rest[-2]["delta"]
    return message | {name: value for name, value in rest[-2].items() if name not in ("type", "delta")}


def shown(message: Body) -> list[Body]:
    """Return the content without the ids of calls, which are random."""
    return [{name: value for name, value in block.items() if name != "id"} for block in message["content"]]
