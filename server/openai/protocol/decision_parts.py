"""Texts of decisions: instructions, messages and JSON values that a question is about."""

import json
from typing import Annotated, Any

from pydantic import PlainValidator, WithJsonSchema

from caravan.server.openai.protocol.fields import wrong

MAX_JSON_LEVELS, MAX_JSON_VALUES, MAX_JSON_BYTES = 32, 10_000, 256 * 2**10
_CACHE_MARK = "prompt_cache_breakpoint"  # no effect: prefixes are always cached
_ITEMS = ("message", "function_call", "function_call_output", "custom_tool_call", "custom_tool_call_output")


def json_text(value: Any) -> str:
    """Return a value as JSON; raises PydanticCustomError if it is too deep or too large."""
    level, depth, count = [value], 0, 0
    while level:
        depth += 1
        count += len(level)
        if depth > MAX_JSON_LEVELS or count > MAX_JSON_VALUES:
            raise wrong(
                "must have JSON of at most {levels} levels and {values} values",
                levels=MAX_JSON_LEVELS,
                values=MAX_JSON_VALUES,
            )
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
    text = json.dumps(value, ensure_ascii=False)
    if len(text.encode()) > MAX_JSON_BYTES:
        raise wrong("must have JSON of at most {limit} bytes", limit=MAX_JSON_BYTES)
    return text


def _part_text(part: Any) -> str:
    """Return the text of an input_text or input_json part."""
    kind = part.get("type") if isinstance(part, dict) else None
    name = {"input_text": "text", "input_json": "data"}.get(kind) if isinstance(kind, str) else None
    if kind == "input_image":
        raise wrong("must be text: images are not supported")
    if name is None or set(part) - {_CACHE_MARK} != {"type", name}:
        raise wrong("must be a string or a list of parts of type input_text or input_json")
    if name == "data":
        return json_text(part["data"])
    if not isinstance(part["text"], str):
        raise wrong("must have a string as `text` of each input_text part")
    return str(part["text"])


def _instructions(value: Any) -> str:
    if isinstance(value, str):
        text = value
    elif isinstance(value, list):
        text = "\n".join(map(_part_text, value))
    else:
        raise wrong("must be a string or a list of parts of type input_text or input_json")
    if not text.strip():
        raise wrong("must not be empty")
    return text


def _input(value: Any) -> str | list[dict[str, Any]]:
    """Return a text, or items in the form of /v1/responses: JSON parts as text."""
    if isinstance(value, str) and value.strip():
        return value
    if not isinstance(value, list) or not value or not all(isinstance(item, dict) for item in value):
        raise wrong("must be a text or a list of items, and not empty")
    if len(value) > 4096:
        raise wrong("must have at most 4096 items")
    called: set[Any] = set()
    items: list[dict[str, Any]] = []
    for index, item in enumerate(value):
        kind = item.get("type", "message")
        if kind not in _ITEMS:
            raise wrong(
                "must have items of type {kinds}; item {index} is different", kinds=", ".join(_ITEMS), index=index
            )
        if kind.endswith("_call"):
            called.add(str(item.get("call_id")))
        if kind.endswith("_output") and str(item.get("call_id")) not in called:
            raise wrong("must have the call of each output before it; item {index} has none", index=index)
        if isinstance(item.get("content"), list):
            item = {**item, "content": [*map(_as_text_part, item["content"])]}
        if isinstance(item.get("output"), list):
            item = {**item, "output": [*map(_as_text_part, item["output"])]}
        items.append(item)
    return items


def _as_text_part(part: Any) -> Any:
    if not isinstance(part, dict):
        return part
    if part.get("type") in ("input_text", "input_json", "input_image"):
        return {"type": "input_text", "text": _part_text(part)}
    return part  # those of the assistant


def _state(value: Any) -> str:
    """Return the state of a System One request as text."""
    if not isinstance(value, str | dict | list):
        raise wrong("must be a string, an object or a list")
    text = value if isinstance(value, str) else json_text(value)
    if not text.strip():
        raise wrong("must not be empty")
    return text


def _value(value: Any) -> str | bool:
    if not isinstance(value, str | bool):
        raise wrong("must be a string or a boolean")
    if value == "":
        raise wrong("must not be empty")
    return value


_PART_SCHEMA = {"type": "array", "items": {"type": "object"}}
Instructions = Annotated[
    str, PlainValidator(_instructions), WithJsonSchema({"anyOf": [{"type": "string"}, _PART_SCHEMA]})
]
DecisionInput = Annotated[
    str | list[dict[str, Any]],
    PlainValidator(_input),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "object"}, "minItems": 1}]}),
]
StateField = Annotated[
    str,
    PlainValidator(_state),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "object"}, {"type": "array", "items": {}}]}),
]
ChoiceValue = Annotated[
    str | bool,
    PlainValidator(_value),
    WithJsonSchema({"anyOf": [{"type": "string", "minLength": 1}, {"type": "boolean"}]}),
]
