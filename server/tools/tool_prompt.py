"""How tools and their calls come into a prompt."""

import json
from collections.abc import Sequence
from typing import Any

from server.special_token_guard import Json
from server.tools.call_format import HERMES, CallFormat


def knows_tools(template: str) -> bool:
    """Return whether a chat template writes tools by itself."""
    return "tools" in template


def described(messages: list[dict[str, Json]], tools: Sequence[dict[str, Any]]) -> list[dict[str, Json]]:
    """Return the messages for a template that knows no tools: the system message names them, calls are text."""
    messages = [_as_text(message, HERMES) for message in messages]
    if not tools:
        return messages
    listed = "\n".join(json.dumps(tool) for tool in tools)
    text = (
        "You can call functions. Each is described in a line of JSON:\n"
        f"{listed}\n"
        "To call one, write its name and its arguments as JSON between these marks and nothing else:\n"
        f"{HERMES.written([('NAME', '{...}')])}"
    )
    if messages and messages[0]["role"] == "system":
        return [{**messages[0], "content": f"{messages[0]['content']}\n\n{text}"}, *messages[1:]]
    return [{"role": "system", "content": text}, *messages]


def with_parsed_arguments(message: dict[str, Json]) -> dict[str, Json]:
    """Return a message whose calls have their arguments as objects, as templates expect them."""
    calls = message.get("tool_calls")
    if not isinstance(calls, list):
        return message
    parsed: list[Json] = []
    for call in calls:
        assert isinstance(call, dict)
        function = call["function"]
        assert isinstance(function, dict)
        parsed.append({**call, "function": {**function, "arguments": json.loads(str(function["arguments"]))}})
    return {**message, "tool_calls": parsed}


def _as_text(message: dict[str, Json], call_format: CallFormat) -> dict[str, Json]:
    """Return the message with its calls, or the answer of a tool, as ordinary text."""
    if message["role"] == "tool":
        return {"role": "user", "content": f"<tool_response>\n{message.get('content', '')}\n</tool_response>"}
    calls = message.get("tool_calls")
    if not isinstance(calls, list):
        return message
    written: list[tuple[str, str]] = []
    for call in calls:
        assert isinstance(call, dict)
        function = call["function"]
        assert isinstance(function, dict)
        written.append((str(function["name"]), str(function["arguments"])))
    return {"role": message["role"], "content": f"{message.get('content', '')}{call_format.written(written)}"}
