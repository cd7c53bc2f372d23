"""GenerationFields: the common fields of /api/chat and /api/generate."""

from typing import Annotated, Any, Self

from pydantic import Field, PlainValidator, model_validator

from caravan.server.http.errors import invalid
from caravan.server.ollama.options import ModelOptions
from caravan.server.openai.protocol.decisions import AskingFields
from caravan.server.openai.protocol.fields import NoEffect, check_depth, wrong
from caravan.server.openai.protocol.generation_request import MAX_LOGPROBS
from caravan.server.openai.protocol.strict_model import ignored_fields, ignored_warnings
from caravan.server.openai.protocol.thinking_fields import ThinkField

KeepAliveField = Annotated[
    int | float | str | None,
    NoEffect(),
    Field(None, description="No effect: the server decides when models sleep."),
]


def _format(value: Any) -> dict[str, Any] | None:
    if value in ("", None):
        return None
    if value == "json":
        return {"type": "object"}
    if not isinstance(value, dict):
        raise wrong("must be json or a JSON schema")
    check_depth(value)
    return value


FormatField = Annotated[
    dict[str, Any] | None, PlainValidator(_format, json_schema_input_type=dict[str, Any] | str | None)
]


class GenerationFields(AskingFields):
    """Model, sampling, the form of the text, and what the response reports."""

    model: str
    stream: bool = Field(True, description="One JSON object in each line; false: a single one.")
    format: FormatField = Field(None, description="json for any JSON object, or a JSON schema. Always enforced.")
    options: ModelOptions | None = None
    think: ThinkField = Field(None, description="Whether, or how much, the model thinks, if its template can say it.")
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=MAX_LOGPROBS, description="Above 0 requires `logprobs`.")
    keep_alive: KeepAliveField

    @property
    def chosen_options(self) -> ModelOptions:
        """The options, also if there are none."""
        return ModelOptions.model_validate({}) if self.options is None else self.options

    @property
    def asks_to_unload(self) -> bool:
        """Whether `keep_alive` is zero."""
        return str(self.keep_alive).rstrip("smh") in ("0", "0.0")

    @model_validator(mode="after")
    def _asks_for_logprobs(self) -> Self:
        if self.top_logprobs and not self.logprobs:
            raise invalid("`top_logprobs` requires `logprobs`.", "top_logprobs")
        return self

    def common_fields(self) -> dict[str, Any]:
        """Return the fields of the equivalent chat or completion."""
        options = self.chosen_options
        fields: dict[str, Any] = {"model": self.model, "stream": self.stream, **options.as_fields()}
        fields["max_tokens"] = options.max_tokens
        if self.format is not None:
            fields["json_schema"] = self.format
        if self.think is not None:
            fields["think"] = self.think
        return fields

    def warnings(self) -> list[str]:
        """Return a warning for each field and each option that has no effect."""
        return ignored_warnings(ignored_fields(self)) + self.chosen_options.unknown_warnings

    def warnings_without_prompt(self) -> list[str]:
        """Return the warnings where there is nothing to answer, so that the model is only loaded."""
        unused = ("system", "raw", "tools", "format", "think", "options", "logprobs")
        given = (name for name in unused if getattr(self, name, None))
        return [*self.warnings(), *(f"`{name}` has no effect without a prompt." for name in given)]
