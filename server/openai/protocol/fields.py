"""Field types of requests that pydantic does not have."""

import re
from collections.abc import Callable
from typing import Annotated, Any

from pydantic import AfterValidator, Field, PlainValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from caravan.server.http.errors import shown

_MAX_STOP_STRINGS = 16
_MAX_STOP_CHARACTERS = 1024
_MAX_BIASED_TOKENS = 1024
_MAX_BAD_WORDS = 128
_MAX_BAD_CHARACTERS = 128
_MAX_DEPTH = 64  # of JSON values that are accepted unchanged
_INTEGER = re.compile(r"-?(?:0|[1-9][0-9]{0,19})")


class NoEffect:
    """Marks a field that has a type but no effect here; a request that sets it gets a warning."""


def wrong(phrase: str, **context: object) -> PydanticCustomError:
    """Return an error; `phrase` completes "`field` is value; it ..." and can have `{name}` for a context value."""
    return PydanticCustomError("invalid", phrase, context)


def _unsupported(value: Any) -> None:
    if value is not None:
        raise wrong("is not supported by this version; leave it out")


Unsupported = Annotated[Any, PlainValidator(_unsupported), WithJsonSchema({"enum": [None]})]


def _stop_strings(value: Any) -> list[str]:
    if value == "":
        return []  # as forms send an empty field
    strings = [value] if isinstance(value, str) else value
    if not isinstance(strings, list) or not all(isinstance(string, str) for string in strings):
        raise wrong("must be a string or a list of strings")
    if len(strings) > _MAX_STOP_STRINGS:
        raise wrong("must have at most {limit} strings", limit=_MAX_STOP_STRINGS)
    if not all(strings):
        raise wrong("must have no empty string")
    if max(map(len, strings), default=0) > _MAX_STOP_CHARACTERS:
        raise wrong("must have strings of at most {limit} characters", limit=_MAX_STOP_CHARACTERS)
    return strings


def _bad_words(value: Any) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
        raise wrong("must be a list of strings")
    if len(value) > _MAX_BAD_WORDS:
        raise wrong("must have at most {limit} strings", limit=_MAX_BAD_WORDS)
    if not all(word.strip() for word in value):
        raise wrong("must have no empty string")
    if max(map(len, value), default=0) > _MAX_BAD_CHARACTERS:
        raise wrong("must have strings of at most {limit} characters", limit=_MAX_BAD_CHARACTERS)
    return value


def _logit_bias(value: Any) -> dict[int, float]:
    if not isinstance(value, dict):
        raise wrong("must be an object of token ids and numbers")
    if len(value) > _MAX_BIASED_TOKENS:
        raise wrong("must have at most {limit} tokens", limit=_MAX_BIASED_TOKENS)
    biases: dict[int, float] = {}
    for token, bias in value.items():
        if not _INTEGER.fullmatch(token):
            raise wrong("must have token ids as keys; {token} is not one", token=shown(token))
        if type(bias) not in (int, float) or not -100 <= bias <= 100:
            raise wrong("must have values from -100 to 100, not {bias}", bias=shown(bias))
        biases[int(token)] = float(bias)
    return biases


def _prompts(value: Any) -> list[str | list[int]]:
    """Return the prompts in any of the four forms as a list of prompts."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and value:
        if _is_token_list(value):
            return [value]
        if all(isinstance(item, str) for item in value):
            return value
        if all(isinstance(item, list) and _is_token_list(item) for item in value):
            return value
    if value == []:
        raise wrong("is empty; it must have at least one token")
    raise wrong("must be a string, a list of strings, a list of token ids or a list of such lists")


def _is_token_list(value: list[Any]) -> bool:
    return all(type(item) is int for item in value)


def check_depth(value: Any) -> None:
    """Raise the error of a value that is nested too deeply."""
    level, depth = [value], 0
    while level:
        if depth > _MAX_DEPTH:
            raise wrong("must not be nested more than {limit} levels deep", limit=_MAX_DEPTH)
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        depth += 1


def _schema(value: dict[str, Any]) -> dict[str, Any]:
    check_depth(value)
    return value


def _plain(read: Callable[[Any], Any], accepts: Any) -> PlainValidator:
    return PlainValidator(read, json_schema_input_type=accepts)


SchemaField = Annotated[dict[str, Any], AfterValidator(_schema)]
StopField = Annotated[list[str], _plain(_stop_strings, str | list[str])]
BadWordsField = Annotated[list[str], _plain(_bad_words, list[str])]
LogitBiasField = Annotated[dict[int, float], _plain(_logit_bias, dict[str, Annotated[float, Field(ge=-100, le=100)]])]
PromptField = Annotated[list[str | list[int]], _plain(_prompts, str | list[str] | list[int] | list[list[int]])]
