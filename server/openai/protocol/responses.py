"""The request of POST /v1/responses, and the equivalent chat request."""

from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, Discriminator, Field, TypeAdapter, ValidationError, model_validator

from caravan.server.http.errors import invalid
from caravan.server.openai.protocol.fields import SchemaField
from caravan.server.openai.protocol.generation_request import MAX_LOGPROBS, SamplingFields
from caravan.server.openai.protocol.known_field import KnownFields
from caravan.server.openai.protocol.known_fields import RESPONSES, SCHEMA, TEXT_OPTIONS
from caravan.server.openai.protocol.response_format import JsonObjectFormat, TextFormat
from caravan.server.openai.protocol.response_items import InputReader
from caravan.server.openai.protocol.response_tools import (
    EnforcedInputs,
    FunctionTool,
    OfferedTool,
    ResponseTool,
    enforced_inputs,
    offered_tools,
    without_effect,
)
from caravan.server.openai.protocol.strict_model import StrictModel, ignored_fields, ignored_warnings
from caravan.server.openai.protocol.thinking_fields import ThinkingFields
from caravan.server.openai.protocol.tools import MAX_TOOLS, STOP_WARNING, strictness_warnings
from caravan.server.openai.protocol.validation import first_problem

_LOGPROBS = "message.output_text.logprobs"
_ENCRYPTED = "reasoning.encrypted_content"


class NamedSchemaFormat(StrictModel):
    """JSON of a schema."""

    known_fields: ClassVar[KnownFields] = SCHEMA

    type: Literal["json_schema"]
    name: str = Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")
    definition: SchemaField = Field(alias="schema")
    strict: bool = Field(True, description="Schemas are always enforced.")


class TextOptions(StrictModel):
    """The format of the text."""

    known_fields: ClassVar[KnownFields] = TEXT_OPTIONS

    format: Annotated[TextFormat | JsonObjectFormat | NamedSchemaFormat, Discriminator("type")] = TextFormat(
        type="text"
    )


class _ToolList(BaseModel):
    """The tools of an input item."""

    tools: list[ResponseTool] = Field(max_length=MAX_TOOLS)


class ResponsesRequest(ThinkingFields, SamplingFields):
    """The body of POST /v1/responses. Nothing is stored: each request has the whole conversation."""

    known_fields: ClassVar[KnownFields] = RESPONSES

    model: str
    input: str | Annotated[list[dict[str, Any]], Field(fail_fast=True)] = Field(
        description="A text, or messages, function calls and their outputs."
    )
    instructions: str | None = None
    max_output_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    include: list[
        Literal[
            "message.output_text.logprobs",
            "reasoning.encrypted_content",
            "message.input_image.image_url",
            "file_search_call.results",
            "web_search_call.results",
            "web_search_call.action.sources",
            "code_interpreter_call.outputs",
            "computer_call_output.output.image_url",
        ]
    ] = Field([], fail_fast=True, description=f"Only `{_LOGPROBS}` and `{_ENCRYPTED}` have an effect.")
    text: TextOptions = Field(TextOptions())
    tools: list[ResponseTool] = Field([], max_length=MAX_TOOLS)
    tool_choice: str | dict[str, Any] = "auto"
    parallel_tool_calls: bool = True
    stream: bool = False
    background: bool = Field(False, description="The response goes on when the client leaves, and can be read again.")
    metadata: dict[str, str] = Field({}, max_length=16, description="Returned unchanged.")
    store: bool = Field(False, description="No effect: responses are not stored.")

    @property
    def wants_logprobs(self) -> bool:
        """Whether the text has log-probabilities."""
        return _LOGPROBS in self.include or bool(self.top_logprobs)

    @property
    def wants_encrypted_thoughts(self) -> bool:
        """Whether reasoning items have their text in an opaque form, too."""
        return _ENCRYPTED in self.include

    @model_validator(mode="after")
    def _input_is_not_empty(self) -> Self:
        if not self.input:
            raise invalid("`input` is empty; it must have a text or an item.", "input")
        return self

    @cached_property
    def all_tools(self) -> list[ResponseTool]:
        """The tools of the request and those in its input; raises ApiError for an invalid one."""
        tools = list(self.tools)
        for index, item in enumerate(self.input if isinstance(self.input, list) else []):
            if item.get("type") == "additional_tools":
                part = {"tools": item.get("tools")}
                try:
                    tools += TypeAdapter(_ToolList).validate_python(part, strict=True).tools
                except ValidationError as error:
                    raise first_problem(error, part, f"input[{index}]") from None
        return tools

    @cached_property
    def offered_tools(self) -> dict[str, OfferedTool]:
        """The tools that the model may call, by the names of their functions."""
        offered = offered_tools(self.all_tools)
        by_name = {tool.function_name: tool for tool in offered}
        if len(by_name) < len(offered):
            raise invalid("Two of `tools` have the same name.", "tools")
        return by_name

    @cached_property
    def enforced_inputs(self) -> EnforcedInputs:
        """The formats of the custom tools."""
        return enforced_inputs(self.offered_tools.values())

    @cached_property
    def read_input(self) -> InputReader:
        """The instructions and the input as messages; raises ApiError for an invalid item."""
        reader = InputReader()
        if self.instructions is not None:
            reader.add({"role": "system", "content": self.instructions}, "instructions")
        if isinstance(self.input, str):
            reader.add({"role": "user", "content": self.input}, "input")
        else:
            for index, item in enumerate(self.input):
                reader.read(item, f"input[{index}]")
        reader.end()
        if not reader.messages:
            raise invalid("`input` has no message.", "input")
        return reader

    def as_chat(self) -> dict[str, Any]:
        """Return the body of the equivalent chat request; raises ApiError for an invalid input."""
        chat: dict[str, Any] = {"tools": [tool.as_chat_tool() for tool in self.offered_tools.values()]}
        chat |= {"model": self.model, "messages": self.read_input.messages, "stream": self.stream}
        chat |= {"parallel_tool_calls": self.parallel_tool_calls, "tool_choice": self._chat_choice()}
        chat |= {"response_format": _chat_format(self.text), "max_completion_tokens": self.max_output_tokens}
        chat |= {"temperature": self.temperature, "top_p": self.top_p}
        shared = SamplingFields.model_fields.keys() | ThinkingFields.model_fields.keys()
        chat |= {name: getattr(self, name) for name in shared if name in self.model_fields_set}
        if "logit_bias" in chat:
            chat["logit_bias"] = {str(token_id): bias for token_id, bias in self.logit_bias.items()}
        if self.wants_logprobs:
            chat |= {"logprobs": True, "top_logprobs": self.top_logprobs or 0}
        return {name: value for name, value in chat.items() if value is not None}

    @cached_property
    def ignored_fields(self) -> dict[str, str]:
        """A warning for each field, item and tool of the request that has no effect, by path."""
        ignored = ignored_fields(self)
        warnings = dict(zip(ignored, ignored_warnings(ignored), strict=True))
        if self.store:
            warnings["store"] = "`store` has no effect on this server."
        for name in self.include:
            if name not in (_LOGPROBS, _ENCRYPTED):
                warnings[f"include[].{name}"] = f"`{name}` of `include` has no effect on this server."
        return warnings | self.read_input.ignored | without_effect(self.all_tools, self.enforced_inputs)

    def warnings(self) -> list[str]:
        """Return a warning for each field of the request that has no effect."""
        warnings = list(self.ignored_fields.values())
        named = self.text.format
        if isinstance(named, NamedSchemaFormat) and "strict" in named.model_fields_set and not named.strict:
            warnings.append("`text.format.strict` has no effect: schemas are always enforced.")
        choice = self.tool_choice if isinstance(self.tool_choice, str) else "named"
        if self.stop and choice not in ("none", "auto"):
            warnings.append(STOP_WARNING)
        offered = (one.tool for one in self.offered_tools.values())
        return warnings + strictness_warnings([tool for tool in offered if isinstance(tool, FunctionTool)], choice)

    def _chat_choice(self) -> Any:
        """Return `tool_choice` in the form of a chat; other values stay, for the chat's validation to refuse."""
        choice = self.tool_choice
        if not isinstance(choice, dict) or choice.get("type") not in ("function", "custom"):
            return choice
        if not set(choice) <= {"type", "name", "namespace"} or not isinstance(choice.get("name"), str):
            return choice
        fitting = [
            name
            for name, offered in self.offered_tools.items()
            if offered.tool.name == choice["name"] and choice.get("namespace") in (None, offered.namespace)
        ]
        return {"type": "function", "function": {"name": fitting[0] if len(fitting) == 1 else choice["name"]}}


def _chat_format(text: TextOptions) -> dict[str, Any]:
    if isinstance(text.format, NamedSchemaFormat):
        named = text.format.model_dump(exclude_unset=True, exclude={"type"}, by_alias=True)
        return {"type": "json_schema", "json_schema": named}
    return {"type": text.format.type}
