"""The responses of /v1/messages: the message, and the events of its stream."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, UnsetType
from pydantic import BaseModel

from caravan.server.observe.explanation import Explanation
from caravan.server.openai.protocol.response_model import ResponseModel, Timings


class MessageText(ResponseModel, kw_only=True):
    """A text."""

    type: Literal["text"] = "text"
    text: str = ""


class MessageThinking(ResponseModel, kw_only=True):
    """A thought, before the text and the calls."""

    type: Literal["thinking"] = "thinking"
    thinking: str = ""
    signature: str = ""  # the same text in an opaque form


class MessageToolUse(ResponseModel, kw_only=True):
    """A call of a tool."""

    type: Literal["tool_use"] = "tool_use"
    id: str
    name: str
    input: dict[str, Any]


OutputBlock = MessageText | MessageThinking | MessageToolUse
Blocks = Annotated[
    list[Any],
    msgspec.Meta(
        extra_json_schema={
            "items": {
                "anyOf": [
                    {"$ref": "#/components/schemas/MessageText"},
                    {"$ref": "#/components/schemas/MessageThinking"},
                    {"$ref": "#/components/schemas/MessageToolUse"},
                ]
            }
        }
    ),
]
StopKind = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use", "model_context_window_exceeded"]


class ThinkingTokens(ResponseModel, kw_only=True):
    """Details of the generated tokens."""

    thinking_tokens: int  # the marks of the thought are among them


class MessageUsage(ResponseModel, kw_only=True):
    """Token counts; those of the prompt are the sum of the first three."""

    input_tokens: int  # without cached ones
    cache_creation_input_tokens: Literal[0] = 0
    cache_read_input_tokens: int
    output_tokens: int
    output_tokens_details: ThinkingTokens | UnsetType = UNSET  # of models that think
    timings: Timings | UnsetType = UNSET  # if requested


class StopDetails(ResponseModel, kw_only=True):
    """Why a message has ended, if its `stop_reason` does not say it."""

    type: Literal["repetition"] = "repetition"


class MessageObject(ResponseModel, kw_only=True):
    """The response of POST /v1/messages."""

    id: str
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"
    model: str
    content: Blocks
    stop_reason: StopKind | None = None
    stop_sequence: str | None = None
    usage: MessageUsage
    stop_details: StopDetails | UnsetType = UNSET
    warnings: list[str] | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET
    token_ids: list[int] | UnsetType = UNSET
    explanation: Explanation | UnsetType = UNSET


class TokenCount(ResponseModel, kw_only=True):
    """The response of POST /v1/messages/count_tokens."""

    input_tokens: int
    warnings: list[str] | UnsetType = UNSET


class BlockDelta(ResponseModel, kw_only=True):
    """The next part of a block, in the field that its type names."""

    type: Literal["text_delta", "thinking_delta", "signature_delta", "input_json_delta"]
    text: str | UnsetType = UNSET
    thinking: str | UnsetType = UNSET
    signature: str | UnsetType = UNSET
    partial_json: str | UnsetType = UNSET


class BlockDeltaEvent(ResponseModel, kw_only=True):
    """The event of the next part of a block."""

    type: Literal["content_block_delta"] = "content_block_delta"
    index: int
    delta: BlockDelta


class MessageErrorDetail(BaseModel):
    """An error of /v1/messages."""

    type: str
    message: str


class MessageErrorBody(BaseModel):
    """The body of every error response of /v1/messages."""

    type: Literal["error"]
    error: MessageErrorDetail
    request_id: str
