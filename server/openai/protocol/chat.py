"""The request and response of POST /v1/chat/completions, and the chunks of its stream."""

from typing import ClassVar, Literal, Self

from msgspec import UNSET, UnsetType
from pydantic import Field, model_validator

from caravan.server.http.errors import invalid
from caravan.server.observe.explanation import Explanation
from caravan.server.openai.protocol.generation_request import MAX_LOGPROBS, GenerationRequest
from caravan.server.openai.protocol.known_field import KnownFields
from caravan.server.openai.protocol.known_fields import CHAT
from caravan.server.openai.protocol.messages import Conversation
from caravan.server.openai.protocol.response_model import (
    ChatLogprobs,
    Head,
    PromptLogprobs,
    ResponseModel,
    StopReason,
    Usage,
)
from caravan.server.openai.protocol.thinking_fields import ThinkingFields
from caravan.server.openai.protocol.tools import STOP_WARNING, Tool, ToolChoiceField, strictness_warnings


class ChatRequest(Conversation, ThinkingFields, GenerationRequest):
    """The body of POST /v1/chat/completions."""

    known_fields: ClassVar[KnownFields] = CHAT

    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool = False
    top_logprobs: int | None = Field(
        None, ge=0, le=MAX_LOGPROBS, description="Alternatives for each token; above 0 requires `logprobs`."
    )

    tool_choice: ToolChoiceField = "auto"
    parallel_tool_calls: bool = Field(True, description="False: at most one call.")

    @property
    def shown_tools(self) -> list[Tool]:
        """See Conversation."""
        return [] if self.tool_choice == "none" else self.tools

    @property
    def required_tools(self) -> list[Tool]:
        """The functions of which the model must call one; empty: a call is optional."""
        if self.tool_choice in ("none", "auto"):
            return []
        name = self.tool_choice.removeprefix("function ")
        return [tool for tool in self.tools if self.tool_choice == "required" or tool.function.name == name]

    @property
    def allows_several_calls(self) -> bool:
        """Whether a response may have several calls; a `tool_choice` that names a function allows one."""
        return self.parallel_tool_calls and not self.tool_choice.startswith("function ")

    def warnings(self) -> list[str]:
        """See GenerationRequest."""
        warnings = super().warnings() + ([STOP_WARNING] if self.stop and self.required_tools else [])
        return warnings + strictness_warnings([tool.function for tool in self.tools], self.tool_choice)

    @property
    def max_new_tokens(self) -> int | None:
        """See GenerationRequest."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def num_logprobs(self) -> int | None:
        """See GenerationRequest."""
        return (self.top_logprobs or 0) if self.logprobs else None

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise invalid("`max_tokens` and `max_completion_tokens` differ; send one of them.", "max_tokens")
        if self.tool_choice not in ("none", "auto") and not self.required_tools:
            raise invalid("`tool_choice` requires a function that `tools` does not have.", "tool_choice")
        if self.top_logprobs and not self.logprobs:
            raise invalid("`top_logprobs` needs `logprobs` to be true.", "top_logprobs")
        return self


class CallTarget(ResponseModel, kw_only=True):
    """The function of a call; its arguments are JSON, whole or a part."""

    name: str | UnsetType = UNSET
    arguments: str


class Call(ResponseModel, kw_only=True):
    """A function call, or a part of one."""

    index: int | UnsetType = UNSET  # in chunks
    function: CallTarget
    id: str | UnsetType = UNSET
    type: Literal["function"] | UnsetType = UNSET


class ChatMessage(ResponseModel, kw_only=True):
    """A message of the assistant."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: None = None
    reasoning: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET  # the same text
    tool_calls: list[Call] | UnsetType = UNSET


class ChatDelta(ResponseModel, kw_only=True):
    """The next part of a message."""

    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET  # the same text
    tool_calls: list[Call] | UnsetType = UNSET


ChatFinishReason = Literal["stop", "length", "tool_calls"]


class ChatChoice(ResponseModel, kw_only=True):
    """A choice of a chat completion."""

    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: ChatFinishReason | None
    stop_reason: StopReason | UnsetType = UNSET
    token_ids: list[int] | UnsetType = UNSET
    token_id_logprobs: dict[str, float] | UnsetType = UNSET


class ChatChunkChoice(ResponseModel, kw_only=True):
    """A part of a choice."""

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None = None
    finish_reason: ChatFinishReason | None = None
    stop_reason: StopReason | UnsetType = UNSET
    token_ids: list[int] | UnsetType = UNSET
    token_id_logprobs: dict[str, float] | UnsetType = UNSET


class ChatCompletion(Head, kw_only=True):
    """The response of POST /v1/chat/completions."""

    choices: list[ChatChoice]
    usage: Usage
    warnings: list[str] | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET
    explanation: Explanation | UnsetType = UNSET


class ChatCompletionChunk(Head, kw_only=True):
    """A chunk of a streamed chat."""

    choices: list[ChatChunkChoice]
    usage: Usage | UnsetType = UNSET
    warnings: list[str] | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET
    explanation: Explanation | UnsetType = UNSET
