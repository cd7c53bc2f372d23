"""Structured-output fields, under their names in OpenAI, vLLM, SGLang and llama.cpp."""

import re
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, PlainValidator, model_validator

from caravan.server.http.body import parse_json
from caravan.server.http.errors import ApiError, invalid, shown
from caravan.server.openai.protocol.fields import SchemaField, check_depth, wrong
from caravan.server.openai.protocol.known_field import KnownFields
from caravan.server.openai.protocol.known_fields import STRUCTURED_OUTPUTS
from caravan.server.openai.protocol.response_format import (
    JsonObjectFormat,
    JsonSchemaFormat,
    ResponseFormat,
    SchemaObjectFormat,
)
from caravan.server.openai.protocol.strict_model import StrictModel
from caravan.server.openai.structured_output.schema_keywords import ignored_keywords

_GBNF_RULE = re.compile(r"^[ \t]*[A-Za-z_][\w-]*[ \t]*::=", re.MULTILINE)
_MAX_CHOICES = 1000
_MAX_NAMED = 5  # keywords in a warning


@dataclass(frozen=True)
class Form:
    """One constraint of a request: the field that sets it, and its kind and value."""

    param: str
    kind: Literal["schema", "regex", "grammar", "choice"]
    value: Any


def _lark(value: str) -> str:
    """Return a grammar unchanged; raises an error if it is not in Lark syntax."""
    if _GBNF_RULE.search(value):
        raise wrong("cannot be used: this is GBNF; write Lark (`start: ...` in place of `root ::= ...`)")
    return value


def _schema(value: Any) -> dict[str, Any]:
    """Return a JSON schema given as an object or as its text."""
    if isinstance(value, str):
        try:
            value = parse_json(value.encode())
        except ApiError:
            raise wrong("must be a JSON schema, as an object or as its text") from None
    if not isinstance(value, dict):
        raise wrong("must be a JSON schema, as an object or as its text")
    check_depth(value)
    return value


def _choices(value: Any) -> list[str]:
    if not isinstance(value, list) or not value or not all(isinstance(choice, str) and choice for choice in value):
        raise wrong("must be a list of strings that are not empty")
    if len(value) > _MAX_CHOICES:
        raise wrong("must have at most {limit} strings", limit=_MAX_CHOICES)
    return value


LarkField = Annotated[str, Field(min_length=1), AfterValidator(_lark)]
RegexField = Annotated[str, Field(min_length=1)]
SchemaOrTextField = Annotated[dict[str, Any], PlainValidator(_schema, json_schema_input_type=str | dict[str, Any])]
ChoiceField = Annotated[list[str], PlainValidator(_choices, json_schema_input_type=list[str])]


class StructuredOutputs(StrictModel):
    """vLLM's object with one constraint."""

    known_fields: ClassVar[KnownFields] = STRUCTURED_OUTPUTS

    definition: SchemaOrTextField | None = Field(None, alias="json", description="A JSON schema.")
    json_object: bool = Field(False, description="True: any JSON object.")
    regex: RegexField | None = None
    choice: ChoiceField | None = Field(None, description="Strings, of which the text is one.")
    grammar: LarkField | None = Field(None, description="A Lark grammar.")

    @model_validator(mode="before")
    @classmethod
    def _null_schema_is_left_out(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("json", "") is None:
            return {name: item for name, item in value.items() if name != "json"}
        return value

    @model_validator(mode="after")
    def _has_one_kind(self) -> Self:
        kinds = [form.param.removeprefix("structured_outputs.") for form in self.forms]
        if len(kinds) != 1:
            having = f"has {' and '.join(f'`{kind}`' for kind in kinds)}" if kinds else "has no constraint"
            raise invalid(
                f"`structured_outputs` {having}; it must have one of json, json_object, regex, choice and grammar.",
                "structured_outputs",
            )
        return self

    @property
    def forms(self) -> list[Form]:
        """The constraints that are set."""
        return _given(
            ("structured_outputs.json", "schema", self.definition),
            ("structured_outputs.json_object", "schema", {"type": "object"} if self.json_object else None),
            ("structured_outputs.regex", "regex", self.regex),
            ("structured_outputs.choice", "choice", self.choice),
            ("structured_outputs.grammar", "grammar", self.grammar),
        )


class StructuredOutputFields(StrictModel):
    """The structured-output fields, of which at most one may be set."""

    response_format: ResponseFormat | None = None
    regex: RegexField | None = Field(None, description="Regular expression that the whole text matches.")
    grammar: LarkField | None = Field(None, description="Lark grammar that the text matches.")
    structured_outputs: StructuredOutputs | None = Field(None, description="vLLM's object for structured output.")
    json_schema: SchemaField | None = Field(None, description="llama.cpp's name for `response_format` with a schema.")
    ebnf: LarkField | None = Field(None, description="SGLang's name for `grammar`.")

    guided_json: SchemaOrTextField | None = Field(None, description="Use `structured_outputs.json`.")
    guided_json_object: bool = Field(False, description="Use `structured_outputs.json_object`.")
    guided_regex: RegexField | None = Field(None, description="Use `structured_outputs.regex`.")
    guided_choice: ChoiceField | None = Field(None, description="Use `structured_outputs.choice`.")
    guided_grammar: LarkField | None = Field(None, description="Use `structured_outputs.grammar`.")

    @property
    def forms(self) -> list[Form]:
        """The constraints that are set, each with the name of its field."""
        nested = self.structured_outputs.forms if self.structured_outputs is not None else []
        return nested + _given(
            ("response_format", "schema", schema_of(self.response_format)),
            ("regex", "regex", self.regex),
            ("grammar", "grammar", self.grammar),
            ("json_schema", "schema", self.json_schema),
            ("ebnf", "grammar", self.ebnf),
            ("guided_json", "schema", self.guided_json),
            ("guided_json_object", "schema", {"type": "object"} if self.guided_json_object else None),
            ("guided_regex", "regex", self.guided_regex),
            ("guided_choice", "choice", self.guided_choice),
            ("guided_grammar", "grammar", self.guided_grammar),
        )

    @property
    def old_form_warnings(self) -> list[str]:
        """A warning for each field that vLLM has deprecated."""
        return [
            f"`{form.param}` is deprecated; use `structured_outputs.{form.param[7:]}`."
            for form in self.forms
            if form.param.startswith("guided_")
        ]

    @model_validator(mode="after")
    def _forms_exclude_each_other(self) -> Self:
        params = [form.param for form in self.forms]
        if len(params) > 1:
            raise invalid(f"`{'` and `'.join(params)}` cannot be combined; send one of them.", params[0])
        return self


def schema_of(form: ResponseFormat | None) -> dict[str, Any] | None:
    """Return the JSON schema of a `response_format`, or None."""
    match form:
        case SchemaObjectFormat(definition=definition) if definition is not None:
            return definition
        case JsonObjectFormat():
            return {"type": "object"}
        case JsonSchemaFormat(json_schema=named):
            return named.definition
    return None


def schema_warnings(forms: list[Form]) -> list[str]:
    """Return a warning for each schema with keywords that have no effect."""
    warnings = []
    for form in forms:
        ignored = sorted(ignored_keywords(form.value)) if form.kind == "schema" else []
        if ignored:
            names = ", ".join(map(shown, ignored[:_MAX_NAMED]))
            more = f" and {len(ignored) - _MAX_NAMED} more" if ignored[_MAX_NAMED:] else ""
            warnings.append(f"`{form.param}`: these schema keywords have no effect: {names}{more}.")
    return warnings


def _given(*forms: tuple[str, Literal["schema", "regex", "grammar", "choice"], Any]) -> list[Form]:
    return [Form(param, kind, value) for param, kind, value in forms if value is not None]
