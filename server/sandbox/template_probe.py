"""Probe a chat template: rendered test conversations show which message format it expects."""

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import product

from caravan.server.sandbox.special_tokens import Json
from caravan.server.sandbox.template_shape import ContentShape, TemplateShape, text_part

Messages = list[dict[str, Json]]
Render = Callable[[Messages, list[dict[str, Json]]], str]  # of messages and tools; raises ValueError

_MAX_PROBE_SECONDS = 10.0
_FIRST, _SECOND, _OTHER = "qzprobeonezq", "qzprobetwozq", "qzprobeotherzq"
_SHORT_ID, _LONG_ID = "a1B2c3D4e", "call_0123456789abcdef01234567"
_OBJECT: Json = {"city": _FIRST}
_TEXT_OF_OBJECT: Json = f'{{"city": "{_FIRST}"}}'
_CONVERSATIONS: Mapping[str, Sequence[tuple[str, ...]]] = {
    "user": [("user",), ("system", "user"), ("user", "assistant", "user")],
    "assistant": [("user", "assistant", "user"), ("user", "assistant")],
    "system": [("system", "user")],
}
_LATE_SYSTEMS = (("system", "user", "system"), ("system", "user", "system", "assistant", "user"))
_TOOL: dict[str, Json] = {
    "type": "function",
    "function": {
        "name": "find",
        "description": "Find a place.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "Its name."}},
            "required": ["city"],
        },
    },
}


def probe_template(render: Render, *, knows_tools: bool, has_tools: bool = False) -> TemplateShape:
    """Return the shape of the template that `render` renders; no probe starts after 10 seconds.

    With `has_tools` the template is for conversations with tools only.
    """
    probe = _Probe(render, has_tools=has_tools)
    roles: dict[str, ContentShape] = {}
    for role, conversations in _CONVERSATIONS.items():
        shape = probe.content_shape([_conversation(turns, role) for turns in conversations])
        if shape.is_shown:
            roles[role] = shape
        elif role == "user":
            return TemplateShape(is_blind=probe.has_rendered)
    plain = TemplateShape(roles=roles)
    shape_without_calls = replace(plain, takes_late_systems=_takes_late_systems(probe, plain))
    return _with_calls(probe, shape_without_calls) if knows_tools else shape_without_calls


def _takes_late_systems(probe: "_Probe", shape: TemplateShape) -> bool:
    """Return whether a system message is shown after a user message that precedes it, at the end and in between."""
    for turns in _LATE_SYSTEMS:
        texts = (_OTHER, _FIRST, _SECOND, _OTHER, _OTHER)
        messages: Messages = [
            {"role": role, "content": shape.content(role, text)} for role, text in zip(turns, texts, strict=False)
        ]
        if not probe.shows(messages, _FIRST, _SECOND):
            return False
        text = probe.text(messages)
        if text.rindex(_FIRST) > text.index(_SECOND):
            return False
    return True


def _with_calls(probe: "_Probe", shape: TemplateShape) -> TemplateShape:
    """Return the shape with the formats of tool calls and tool results."""

    def called(content: Json, arguments: Json, call_id: str, *more_calls: Json) -> Messages:
        return [
            {"role": "user", "content": shape.content("user", _OTHER)},
            {"role": "assistant", "content": content, "tool_calls": [_call(call_id, arguments), *more_calls]},
        ]

    def answered(result: Json) -> Messages:
        other: Json = {"city": _OTHER} if arguments == _OBJECT else "{}"
        message: dict[str, Json] = {"role": "tool", "tool_call_id": call_id, "name": "find", "content": result}
        return [*called(content, other, call_id), message]

    empty, none = shape.content("assistant", ""), shape.content("assistant", "None")
    for arguments, content, call_id in product((_OBJECT, _TEXT_OF_OBJECT), (empty, None), (_LONG_ID, _SHORT_ID)):
        if probe.shows(called(content, arguments, call_id), _FIRST):
            break
    else:
        return shape
    null_text, empty_text, none_text = (
        probe.text(called(content, arguments, call_id)) for content in (None, empty, none)
    )
    prints_none = null_text == none_text != empty_text
    second: Json = {"city": _SECOND} if arguments == _OBJECT else f'{{"city": "{_SECOND}"}}'
    two_calls = called(content, arguments, call_id, _call(call_id[::-1], second))
    tool = probe.content_shape([answered])
    after_result: Messages = [
        *answered(tool.content(_FIRST)),
        {"role": "user", "content": shape.content("user", _SECOND)},
    ]
    beside_text = called(shape.content("assistant", _SECOND), arguments, call_id)
    is_beside_text_taken = bool(probe.text(beside_text))
    return replace(
        shape,
        roles={**shape.roles, "tool": tool} if tool.is_shown else shape.roles,
        takes_argument_objects=arguments == _OBJECT,
        takes_argument_texts=probe.shows(called(content, _TEXT_OF_OBJECT, call_id), _FIRST),
        takes_null_beside_calls=_FIRST in null_text and not prints_none,
        takes_empty_beside_calls=content is not None,
        takes_short_ids_only=call_id == _SHORT_ID,
        takes_several_calls=probe.shows(two_calls, _FIRST, _SECOND),
        shows_text_beside_calls=not is_beside_text_taken or probe.shows(beside_text, _SECOND),
        shows_calls_beside_text=not is_beside_text_taken or probe.shows(beside_text, _FIRST),
        takes_text_after_results=not tool.is_shown or probe.shows(after_result, _FIRST, _SECOND),
    )


class _Probe:
    """Renders conversations until a deadline."""

    def __init__(self, render: Render, *, has_tools: bool) -> None:
        self.has_rendered = False
        self._has_tools = has_tools
        self._render = render
        self._deadline = time.monotonic() + _MAX_PROBE_SECONDS

    def text(self, messages: Messages) -> str:
        """Return the prompt, empty if the template rejects these messages, for example the order of their roles."""
        if time.monotonic() > self._deadline:
            return ""
        has_calls = any("tool_calls" in message for message in messages)
        try:
            text = self._render(messages, [_TOOL] if has_calls or self._has_tools else [])
        except ValueError:
            return ""
        self.has_rendered = True
        return text

    def shows(self, messages: Messages, *words: str) -> bool:
        """Return whether the prompt has the words as text, and not inside a printed list."""
        text = self.text(messages)
        return all(word in text and not re.search(rf"""['"]text['"]: ?['"]{word}""", text) for word in words)

    def content_shape(self, conversations: Sequence[Callable[[Json], Messages]]) -> ContentShape:
        """Return which content formats are rendered in any of the conversations."""

        def is_shown(content: Json, *words: str) -> bool:
            return any(self.shows(conversation(content), *words) for conversation in conversations)

        return ContentShape(
            takes_text=is_shown(_FIRST, _FIRST),
            takes_parts=is_shown([text_part(_FIRST), text_part(_SECOND)], _FIRST, _SECOND),
            takes_part=is_shown([text_part(_FIRST)], _FIRST),
        )


def _call(call_id: str, arguments: Json) -> Json:
    return {"id": call_id, "type": "function", "function": {"name": "find", "arguments": arguments}}


def _conversation(turns: Sequence[str], role: str) -> Callable[[Json], Messages]:
    """Return a function that makes a conversation: it gets the content of the first message of `role`."""

    def messages(content: Json) -> Messages:
        other: Json = [text_part(_OTHER)] if isinstance(content, list) else _OTHER
        place = turns.index(role)
        return [{"role": turn, "content": content if index == place else other} for index, turn in enumerate(turns)]

    return messages
