"""Validation: pydantic's errors as messages with field, value and limit."""

from collections.abc import Callable, Mapping
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from caravan.server.http.errors import ApiError, invalid, shown
from caravan.server.openai.protocol.strict_model import unknown

_MAX_KEY = 64  # characters of a caller's own key in a message

_MUST_BE: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "bool_type": lambda _: "must be true or false",
    "dict_type": lambda _: "must be an object",
    "float_type": lambda _: "must be a number",
    "int_type": lambda _: "must be an integer",
    "list_type": lambda _: "must be a list",
    "model_type": lambda _: "must be an object",
    "string_type": lambda _: "must be a string",
    "greater_than": lambda context: f"must be greater than {context['gt']:g}",
    "greater_than_equal": lambda context: f"must be at least {context['ge']}",
    "less_than": lambda context: f"must be less than {context['lt']:g}",
    "less_than_equal": lambda context: f"must be at most {context['le']}",
    "union_tag_invalid": lambda context: f"must be of type {context['expected_tags']}",
    "union_tag_not_found": lambda _: "must be an object with a type",
    "literal_error": lambda context: f"must be {context['expected']}",
    "string_pattern_mismatch": lambda context: f"must match {context['pattern']}",
    "string_too_long": lambda context: f"must have at most {context['max_length']} characters",
    "string_too_short": lambda context: f"must have at least {context['min_length']} characters",
    "too_long": lambda context: f"must have at most {context['max_length']} items",
    "too_short": lambda context: f"must have at least {context['min_length']} items",
}


def first_problem(error: ValidationError, body: Any, place: str = "") -> ApiError:
    """Return the first problem in `error` as an ApiError.

    `place` is the path of `body` in the request, if it is only a part of it.
    """
    problem = error.errors(include_url=False)[0]
    param = place + _path(problem["loc"], body)
    if place and not param.startswith((f"{place}[", f"{place}.")) and param != place:
        param = f"{place}.{param.removeprefix(place)}"
    if problem["type"] == "missing":
        return invalid(f"`{param}` is missing; it is required.", param)
    if problem["type"] == "unknown_field":
        return invalid(unknown(param, problem["ctx"]["nearest"]), param)
    if not param:
        return invalid(f"The body is {shown(problem['input'])}; it {_must_be(problem)}.")
    return invalid(f"`{param}` is {shown(problem['input'])}; it {_must_be(problem)}.", param)


def _must_be(problem: ErrorDetails) -> str:
    phrase = _MUST_BE.get(problem["type"])
    # Our own validators raise PydanticCustomError with such a phrase as its message.
    return problem["msg"] if phrase is None else phrase(problem.get("ctx", {}))


def _path(location: tuple[int | str, ...], body: Any) -> str:
    """Return a location as a path: messages[0].content.

    pydantic's locations also name members of unions. Names that the body does not have are left out, except the last
    one, which is a missing field.
    """
    path = ""
    value = body
    for number, part in enumerate(location, start=1):
        if isinstance(part, int):
            path += f"[{part}]"
            value = value[part] if isinstance(value, list) and part < len(value) else None
        elif isinstance(value, dict) and (part in value or number == len(location)):
            path += f".{part[:_MAX_KEY]}"
            value = value.get(part)
    return path.removeprefix(".")
