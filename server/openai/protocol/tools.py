"""The fields of tool calls: functions a model may call, which of them it must, and calls in earlier messages."""

import json
import math
from collections.abc import Collection, Sequence
from typing import Annotated, Any, ClassVar, Literal, NoReturn, Protocol, Self

from pydantic import Field, PlainValidator, PrivateAttr, model_validator

from caravan.server.openai.protocol.fields import SchemaField, check_depth, wrong
from caravan.server.openai.protocol.known_fields import CALLED_FUNCTION, TOOL, TOOL_CALL, KnownFields
from caravan.server.openai.protocol.strict_model import StrictModel
from caravan.server.sandbox.special_tokens import Json, all_keys

MAX_TOOLS = 128
FunctionName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]


class Function(StrictModel):
    """What a model is told of a function."""

    known_fields: ClassVar[KnownFields] = TOOL

    name: FunctionName
    description: str | None = Field(None, max_length=16384)
    parameters: SchemaField = Field({}, description="JSON schema of the arguments, an object.")
    strict: bool = Field(False, description="Arguments of required calls always keep to the schema.")


class Strict(Protocol):
    """Anything with the field `strict`."""

    strict: bool

    @property
    def model_fields_set(self) -> set[str]:
        """The names of the fields that were given."""


def strictness_warnings(functions: Sequence[Strict], tool_choice: str) -> list[str]:
    """Return a sentence if functions say something of strictness that is not so."""
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
        """The JSON schema of the arguments: an object, without properties if nothing is said."""
        return self.function.parameters or {"type": "object", "properties": {}, "additionalProperties": False}


class CalledFunction(StrictModel):
    """A function with the arguments of a call, as a model wrote them: both may be anything."""

    known_fields: ClassVar[KnownFields] = CALLED_FUNCTION

    name: str
    arguments: str = Field("{}", description="A JSON object as a string; what is none goes into the prompt as text.")
    _is_object: bool = PrivateAttr(True)

    @property
    def has_object(self) -> bool:
        """The arguments are a JSON object, or empty."""
        return self._is_object

    @model_validator(mode="after")
    def _parse(self) -> Self:
        self._is_object = parsed_arguments(self.arguments) is not None
        return self


class ToolCall(StrictModel):
    """A call that an earlier answer made."""

    known_fields: ClassVar[KnownFields] = TOOL_CALL

    id: str = Field(max_length=256)
    type: Literal["function"] = "function"
    function: CalledFunction
    index: int | None = Field(None, description="As the parts of a stream have it; means nothing here.")


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
        raise wrong("must be none, auto, required, or the type function with the name of one")
    return f"function {function['name']}"


ToolChoiceField = Annotated[
    str, PlainValidator(_tool_choice, json_schema_input_type=Literal["none", "auto", "required"] | dict[str, Any])
]


def parsed_arguments(text: str, special_tokens: Collection[str] = ()) -> dict[str, Json] | None:
    """Return the object that the arguments of a call are, None if they are not one that can go into a prompt as such.

    An object whose keys have the text of a special token cannot: only values are guarded against it.
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
