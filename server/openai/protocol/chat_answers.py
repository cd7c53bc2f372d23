"""The response of POST /v1/chat/completions, and its chunks."""

from typing import Literal

from msgspec import UNSET, UnsetType

from caravan.server.observe.explanation import Explanation
from caravan.server.openai.protocol.answer import Answered, ChatLogprobs, Head, PromptLogprobs, Usage


class CallTarget(Answered, kw_only=True):
    """The function of a call; its arguments are JSON, whole or a part."""

    name: str | UnsetType = UNSET
    arguments: str


class Call(Answered, kw_only=True):
    """A function call, or a part of one."""

    index: int | UnsetType = UNSET  # in chunks
    function: CallTarget
    id: str | UnsetType = UNSET
    type: Literal["function"] | UnsetType = UNSET


class ChatMessage(Answered, kw_only=True):
    """A message of the assistant."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: None = None
    tool_calls: list[Call] | UnsetType = UNSET


class ChatDelta(Answered, kw_only=True):
    """What a message has next."""

    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType = UNSET
    tool_calls: list[Call] | UnsetType = UNSET


ChatFinishReason = Literal["stop", "length", "tool_calls"]


class ChatChoice(Answered, kw_only=True):
    """A message in answer to a conversation."""

    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: ChatFinishReason | None
    token_ids: list[int] | UnsetType = UNSET


class ChatChunkChoice(Answered, kw_only=True):
    """A part of a choice."""

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None = None
    finish_reason: ChatFinishReason | None = None
    token_ids: list[int] | UnsetType = UNSET


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
