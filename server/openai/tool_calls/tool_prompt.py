"""Tools and their calls as text, for chat templates without tools."""

import json
from collections.abc import Sequence
from typing import Any

from caravan.server.openai.tool_calls.call_format import HERMES, CallFormat
from caravan.server.sandbox.special_tokens import Json
from caravan.server.sandbox.template_shape import text_of_content


def described(messages: list[dict[str, Json]], tools: Sequence[dict[str, Any]]) -> list[dict[str, Json]]:
    """Return the messages for a template without tools: the system message describes them, and calls are text."""
    messages = _as_texts(messages)
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
        return [{**messages[0], "content": f"{text_of_content(messages[0]['content'])}\n\n{text}"}, *messages[1:]]
    return [{"role": "system", "content": text}, *messages]


def _as_texts(messages: list[dict[str, Json]]) -> list[dict[str, Json]]:
    """Return the messages with calls and results of tools as ordinary text.

    Results and what the user says after them are one turn: many templates require that turns alternate.
    """
    turns: list[dict[str, Json]] = []
    follows_result = False
    for message in messages:
        turn = _as_text(message, HERMES)
        if follows_result and turn["role"] == "user":
            turns[-1] = {**turns[-1], "content": f"{turns[-1]['content']}\n{text_of_content(turn['content'])}"}
        else:
            turns.append(turn)
        follows_result = message["role"] == "tool" or (follows_result and turn["role"] == "user")
    return turns


def _as_text(message: dict[str, Json], call_format: CallFormat) -> dict[str, Json]:
    text = text_of_content(message["content"])
    if message["role"] == "tool":
        return {"role": "user", "content": f"<tool_response>\n{text}\n</tool_response>"}
    calls = message.get("tool_calls")
    if not isinstance(calls, list):
        return message
    written: list[tuple[str, str]] = []
    for call in calls:
        assert isinstance(call, dict)
        function = call["function"]
        assert isinstance(function, dict)
        written.append((str(function["name"]), str(function["arguments"])))
    return {"role": message["role"], "content": f"{text}{call_format.written(written)}"}
