"""Messages: the conversation of a chat request."""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, PlainValidator, ValidationInfo, model_validator

from caravan.server.http.errors import invalid, shown
from caravan.server.openai.protocol.fields import NoEffect, Unsupported, wrong
from caravan.server.openai.protocol.known_field import KnownFields
from caravan.server.openai.protocol.known_fields import MESSAGE
from caravan.server.openai.protocol.strict_model import StrictModel
from caravan.server.openai.protocol.thinking_fields import TemplateFields
from caravan.server.openai.protocol.tools import MAX_TOOLS, Tool, ToolCall

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
    """Return whether a content part has a cache mark."""
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


_INSTEAD_OF_CONTENT = ("tool_calls", "refusal", "reasoning_content", "reasoning", "reasoning_details")


def _texts_of_details(value: Any) -> str:
    """Return the readable text of `reasoning_details`, a list of objects of which some have one."""
    if not isinstance(value, list):
        raise wrong("must be a list")
    texts = [detail.get("text") for detail in value if isinstance(detail, dict)]
    return "".join(text for text in texts if isinstance(text, str))


_Dropped = Annotated[Any, NoEffect(), PlainValidator(lambda _: None, json_schema_input_type=Any)]
_DetailsField = Annotated[str, PlainValidator(_texts_of_details, json_schema_input_type=list[Any])]


class Message(StrictModel):
    """One turn of a conversation."""

    known_fields: ClassVar[KnownFields] = MESSAGE

    role: Literal["system", "developer", "user", "assistant", "tool"] = Field(
        description="developer becomes system where the chat template does not have it."
    )
    content: ContentField = Field(
        description="May be null in assistant and tool messages, and omitted with `tool_calls` or `refusal`."
    )
    name: str | None = Field(None, max_length=256)
    tool_call_id: str | None = Field(None, max_length=256)

    # Fields of a response that clients send back in the next request.
    tool_calls: list[ToolCall] = Field([], max_length=MAX_TOOLS)
    refusal: str | None = Field(None, description="Used as the message's text.")
    reasoning_content: str | None = Field(None, description="For chat templates that render earlier reasoning.")
    reasoning: str | None = Field(None, description="Alias of `reasoning_content`.")
    reasoning_details: _DetailsField = Field("", description="Its texts are used if there is no `reasoning_content`.")
    audio: Unsupported = None
    function_call: Unsupported = None
    cache_control: _Dropped = Field(
        None, description="No effect: prefixes are always cached. Allowed in content parts."
    )

    @property
    def reasoning_text(self) -> str:
        """The reasoning of the message, from the first of its fields that is set."""
        return self.reasoning_content or self.reasoning or self.reasoning_details

    @model_validator(mode="before")
    @classmethod
    def _read_older_forms(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        added: dict[str, Any] = {}
        if value.get("role") == "assistant" and any(value.get(name) for name in _INSTEAD_OF_CONTENT):
            added["content"] = value.get("content")
        if has_cache_marks(value.get("content")):
            added["cache_control"] = True
        return {**value, **added}

    @model_validator(mode="after")
    def _only_assistants_call(self) -> Self:
        if self.tool_calls and self.role != "assistant":
            raise invalid("Only messages of the role assistant may have `tool_calls`.", "messages")
        return self


class Conversation(TemplateFields):
    """A conversation that a chat template renders."""

    messages: list[Message] = Field(min_length=1, max_length=4096, fail_fast=True)
    add_generation_prompt: bool | None = Field(None, description="Default: not `continue_final_message`.")
    continue_final_message: bool = False
    tools: list[Tool] = Field([], max_length=MAX_TOOLS)

    @property
    def shown_tools(self) -> list[Tool]:
        """The functions that the prompt describes."""
        return self.tools

    @model_validator(mode="after")
    def _prompts_agree(self) -> Self:
        if self.continue_final_message and self.add_generation_prompt:
            raise invalid(
                "`continue_final_message` and `add_generation_prompt` cannot be combined.", "continue_final_message"
            )
        names = [tool.function.name for tool in self.tools]
        if len(set(names)) < len(names):
            raise invalid("Two functions of `tools` have the same name.", "tools")
        return self
