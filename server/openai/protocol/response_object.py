"""The response of POST /v1/responses."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from caravan.server.observe.explanation import Explanation
from caravan.server.openai.protocol.response_model import (
    CachedTokens,
    ChosenTokenLogprob,
    ReasoningTokens,
    ResponseModel,
    StopReason,
    Timings,
)

Items = Annotated[
    list[Any],
    msgspec.Meta(
        extra_json_schema={
            "items": {
                "anyOf": [
                    {"$ref": "#/components/schemas/OutputReasoning"},
                    {"$ref": "#/components/schemas/OutputMessage"},
                    {"$ref": "#/components/schemas/OutputCall"},
                    {"$ref": "#/components/schemas/OutputCustomCall"},
                ]
            }
        }
    ),
]


class OutputText(ResponseModel, kw_only=True):
    """The text of a message."""

    type: Literal["output_text"] = "output_text"
    text: str = ""
    annotations: list[None]
    logprobs: list[ChosenTokenLogprob]


ItemStatus = Literal["in_progress", "completed", "incomplete"]


class OutputMessage(ResponseModel, kw_only=True):
    """An item of a response: a message of the assistant."""

    id: str
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"
    status: ItemStatus = "in_progress"
    content: list[OutputText]


class ReasoningText(ResponseModel, kw_only=True):
    """The text of a thought."""

    type: Literal["reasoning_text"] = "reasoning_text"
    text: str = ""


class OutputReasoning(ResponseModel, kw_only=True):
    """An item of a response: a thought, before the message and the calls."""

    id: str
    type: Literal["reasoning"] = "reasoning"
    summary: list[None]  # there is no summary: the content is the whole thought
    content: list[ReasoningText]
    encrypted_content: str | UnsetType = UNSET  # the same text in another form, if `include` has it
    status: ItemStatus = "in_progress"


class OutputCall(ResponseModel, kw_only=True):
    """An item of a response: a function call."""

    id: str
    type: Literal["function_call"] = "function_call"
    call_id: str
    name: str
    namespace: str | UnsetType = UNSET
    arguments: str = ""
    status: ItemStatus = "in_progress"


class OutputCustomCall(ResponseModel, kw_only=True):
    """An item of a response: a call of a custom tool."""

    id: str
    type: Literal["custom_tool_call"] = "custom_tool_call"
    call_id: str
    name: str
    namespace: str | UnsetType = UNSET
    input: str = ""
    status: ItemStatus = "in_progress"


class ResponseUsage(ResponseModel, kw_only=True):
    """Token counts of a response."""

    input_tokens: int
    input_tokens_details: CachedTokens
    output_tokens: int
    output_tokens_details: ReasoningTokens
    total_tokens: int
    timings: Timings | UnsetType = UNSET  # if requested


class IncompleteDetails(ResponseModel, kw_only=True):
    """Why a response is incomplete."""

    reason: Literal["max_output_tokens"] = "max_output_tokens"


class ResponseError(ResponseModel, kw_only=True):
    """Why a response failed."""

    code: str
    message: str


class ResponseObject(ResponseModel, kw_only=True):
    """The response of POST /v1/responses; most fields are those of the request."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    status: Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]
    background: bool | UnsetType = UNSET  # if requested
    error: ResponseError | None = None
    incomplete_details: IncompleteDetails | None = None
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, str]
    model: str
    output: Items
    parallel_tool_calls: bool
    previous_response_id: None = None
    store: Literal[False] = False
    temperature: float | None
    text: dict[str, Any]
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
    top_p: float | None
    truncation: Literal["disabled"] = "disabled"
    usage: ResponseUsage | None = None
    stop_reason: StopReason | UnsetType = UNSET
    warnings: list[str] | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET
    token_ids: list[int] | UnsetType = UNSET
    explanation: Explanation | UnsetType = UNSET


class DeletedResponse(ResponseModel, kw_only=True):
    """The response of DELETE /v1/responses/{response_id}."""

    id: str
    object: Literal["response"] = "response"
    deleted: Literal[True] = True
