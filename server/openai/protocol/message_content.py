"""The content of a message in a request: a string, or a list of text parts."""

from typing import Annotated, Any

from pydantic import Field, PlainValidator, ValidationInfo

from caravan.server.http.errors import shown
from caravan.server.openai.protocol.fields import wrong

_TEXT_OF_PART = {"text": "text", "refusal": "refusal"}  # a refusal is text that a model wrote
_CACHE_MARKS = ("cache_control", "prompt_cache_breakpoint")


def _content(value: Any, info: ValidationInfo) -> str | list[dict[str, str]] | None:
    """Return content as it was sent, its parts reduced to their text."""
    if isinstance(value, str) or (value is None and info.data.get("role") in ("assistant", "tool")):
        return value
    if not isinstance(value, list):
        raise wrong("must be a string or a list of text parts")
    parts = []
    for index, part in enumerate(value):
        kind = part.get("type") if isinstance(part, dict) else None
        name = _TEXT_OF_PART.get(kind) if isinstance(kind, str) else None
        if name is None:
            raise wrong("must have text parts only; part {index} is of type {kind}", index=index, kind=shown(kind))
        if set(part) - set(_CACHE_MARKS) != {"type", name} or not isinstance(part[name], str):
            raise wrong("must have parts of type and {name} only; part {index} is different", index=index, name=name)
        parts.append({"type": "text", "text": part[name]})
    return parts


def has_cache_marks(content: Any) -> bool:
    """Return whether a part of a content says what should be cached."""
    return isinstance(content, list) and any(
        mark in part for part in content if isinstance(part, dict) for mark in _CACHE_MARKS
    )


def _part_schema(name: str) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {"type": {"const": name}, name: {"type": "string"}, "cache_control": {}},
        "required": ["type", name],
        "additionalProperties": False,
    }


_Part = Annotated[dict[str, Any], Field(json_schema_extra={"anyOf": [_part_schema(name) for name in _TEXT_OF_PART]})]

ContentField = Annotated[
    str | list[dict[str, str]] | None,
    PlainValidator(_content, json_schema_input_type=str | list[_Part] | None),
]
