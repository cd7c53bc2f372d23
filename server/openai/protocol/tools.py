"""Tools: functions that a model may call, the choice among them, and calls in earlier messages."""

import json
import math
from collections.abc import Collection, Sequence
from typing import Annotated, Any, ClassVar, Literal, NoReturn, Protocol, Self

from pydantic import Field, PlainValidator, PrivateAttr, model_validator

from caravan.server.openai.protocol.fields import SchemaField, check_depth, wrong
from caravan.server.openai.protocol.known_field import KnownFields
from caravan.server.openai.protocol.known_fields import CALLED_FUNCTION, TOOL, TOOL_CALL
from caravan.server.openai.protocol.strict_model import StrictModel
from caravan.server.sandbox.special_tokens import Json, all_keys

MAX_TOOLS = 128
FunctionName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]


class Function(StrictModel):
    """The description of a function, as the prompt shows it."""

    known_fields: ClassVar[KnownFields] = TOOL

    name: FunctionName
    description: str | None = Field(None, max_length=16384)
    parameters: SchemaField = Field({}, description="JSON schema of the arguments, an object.")
    strict: bool = Field(False, description="Arguments of required calls always match the schema.")


class Strict(Protocol):
    """Anything with the field `strict`."""

    strict: bool

    @property
    def model_fields_set(self) -> set[str]:
        """The names of the fields that were given."""


def strictness_warnings(functions: Sequence[Strict], tool_choice: str) -> list[str]:
    """Return a warning if `strict` of a function has no effect."""
    said = {function.strict for function in functions if "strict" in function.model_fields_set}
    if tool_choice == "auto" and True in said:
        return ["`strict` of functions has no effect while `tool_choice` is auto; required calls are strict."]
    if tool_choice not in ("auto", "none") and False in said:
        return ["`strict` of functions has no effect: required calls are strict."]
    return []


class Tool(StrictModel):
    """A function."""

    known_fields: ClassVar[KnownFields] = TOOL

    type: Literal["function"]
    function: Function

    @property
    def arguments_schema(self) -> dict[str, Any]:
        """The JSON schema of the arguments: by default an object without properties."""
        return self.function.parameters or {"type": "object", "properties": {}, "additionalProperties": False}


class CalledFunction(StrictModel):
    """The function name and the arguments of a call as a model wrote them, unchecked."""

    known_fields: ClassVar[KnownFields] = CALLED_FUNCTION

    name: str
    arguments: str = Field("{}", description="A JSON object as a string; other text goes into the prompt unchanged.")
    _is_object: bool = PrivateAttr(True)

    @property
    def has_object(self) -> bool:
        """Whether the arguments are a JSON object, or empty."""
        return self._is_object

    @model_validator(mode="after")
    def _parse(self) -> Self:
        self._is_object = parsed_arguments(self.arguments) is not None
        return self


class ToolCall(StrictModel):
    """A call in an earlier message of the assistant."""

    known_fields: ClassVar[KnownFields] = TOOL_CALL

    id: str = Field(max_length=256)
    type: Literal["function"] = "function"
    function: CalledFunction
    index: int | None = Field(None, description="As in the chunks of a stream; no effect.")


def _tool_choice(value: Any) -> str:
    if value in ("none", "auto", "required"):
        return str(value)
    function = value.get("function") if isinstance(value, dict) and set(value) == {"type", "function"} else None
    if (
        not isinstance(function, dict)
        or value["type"] != "function"
        or set(function) != {"name"}
        or not isinstance(function["name"], str)
    ):
        raise wrong("must be none, auto, required, or an object that names a function")
    return f"function {function['name']}"


ToolChoiceField = Annotated[
    str, PlainValidator(_tool_choice, json_schema_input_type=Literal["none", "auto", "required"] | dict[str, Any])
]


STOP_WARNING = "Stop strings have no effect on a call that `tool_choice` requires."


def parsed_arguments(text: str, special_tokens: Collection[str] = ()) -> dict[str, Json] | None:
    """Return the arguments of a call as an object, or None if they are not an object or not safe in a prompt.

    An object whose keys contain the text of a special token is not safe: the guard protects values only.
    """
    if not text.strip():
        return {}
    try:
        value: Any = json.loads(text, parse_constant=_refuse, parse_float=_finite)
        if value is None:
            return {}
        if not isinstance(value, dict):
            return None
        check_depth(value)
        json.dumps(value, ensure_ascii=False).encode()  # fails for half of a surrogate pair
    except (ValueError, RecursionError):
        return None
    has_special = any(special in key for key in all_keys(value) for special in special_tokens)
    return None if has_special else value


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError
    return value


def _refuse(_: str) -> NoReturn:
    raise ValueError
