"""The bodies of whole answers, for the OpenAPI document.

Nothing is built of these classes, which would take longer than writing the JSON; tests hold the answers to them.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from caravan.server.openai.protocol.explanation import Explanation


class Answered(BaseModel):
    """A part of an answer: these fields and no others; those with a default may be absent."""

    model_config = ConfigDict(extra="forbid")


class CachedTokens(Answered):
    """Of the prompt tokens."""

    cached_tokens: int


class Usage(Answered):
    """Token counts of a whole answer."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens


class TokenLogprob(Answered):
    """A token and how probable it was."""

    token: str
    logprob: float
    bytes: list[int]


class ChosenTokenLogprob(TokenLogprob):
    """A token of an answer, and the most probable ones in its place."""

    top_logprobs: list[TokenLogprob]


class ChatLogprobs(Answered):
    """The tokens of a chat choice."""

    content: list[ChosenTokenLogprob]
    refusal: None


class CompletionLogprobs(Answered):
    """The tokens of a completion choice, in parallel lists."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class PromptLogprob(Answered):
    """How probable a token was at a position of the prompt."""

    logprob: float
    decoded_token: str


PromptLogprobs = list[dict[str, PromptLogprob] | None]  # by token id


class CompletionChoice(Answered):
    """A continuation of a prompt."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"]
    token_ids: list[int] = []
    prompt_logprobs: PromptLogprobs = []


class Completion(Answered):
    """The answer of POST /v1/completions."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage
    warnings: list[str] = []
    prompt_token_ids: list[int] | list[list[int]] = []
    explanation: Explanation | None = None


class CallTarget(Answered):
    """The function of a call; its arguments are JSON."""

    name: str
    arguments: str


class Call(Answered):
    """A function call."""

    id: str
    type: Literal["function"]
    function: CallTarget


class ChatMessage(Answered):
    """What the assistant says."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    tool_calls: list[Call] = []


class ChatChoice(Answered):
    """An answer to a conversation."""

    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length", "tool_calls"]
    token_ids: list[int] = []


class ChatCompletion(Answered):
    """The answer of POST /v1/chat/completions."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    warnings: list[str] = []
    prompt_token_ids: list[int] = []
    prompt_logprobs: PromptLogprobs = []
    explanation: Explanation | None = None


class OutputText(Answered):
    """The text of a message."""

    type: Literal["output_text"]
    text: str
    annotations: list[None]
    logprobs: list[ChosenTokenLogprob]


class OutputMessage(Answered):
    """An item of a response: what the assistant says."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    status: Literal["completed", "incomplete"]
    content: list[OutputText]


class OutputCall(Answered):
    """An item of a response: a function call."""

    id: str
    type: Literal["function_call"]
    call_id: str
    name: str
    namespace: str = ""
    arguments: str
    status: Literal["completed", "incomplete"]


class OutputCustomCall(Answered):
    """An item of a response: a call of a custom tool."""

    id: str
    type: Literal["custom_tool_call"]
    call_id: str
    name: str
    namespace: str = ""
    input: str
    status: Literal["completed", "incomplete"]


class ReasoningTokens(Answered):
    """Of the output tokens."""

    reasoning_tokens: Literal[0]


class ResponseUsage(Answered):
    """Token counts of a response."""

    input_tokens: int
    input_tokens_details: CachedTokens
    output_tokens: int
    output_tokens_details: ReasoningTokens
    total_tokens: int


class IncompleteDetails(Answered):
    """Why a response is incomplete."""

    reason: Literal["max_output_tokens"]


class ResponseObject(Answered):
    """The answer of POST /v1/responses; most fields are those of the request."""

    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["completed", "incomplete"]
    error: None
    incomplete_details: IncompleteDetails | None
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, str]
    model: str
    output: list[OutputMessage | OutputCall | OutputCustomCall]
    parallel_tool_calls: bool
    previous_response_id: None
    store: Literal[False]
    temperature: float | None
    text: dict[str, Any]
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
    top_p: float | None
    truncation: Literal["disabled"]
    usage: ResponseUsage
    warnings: list[str] = []
    prompt_token_ids: list[int] = []
    token_ids: list[int] = []
    explanation: Explanation | None = None


class Embedding(Answered):
    """A vector, in base64 if that was asked for."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingUsage(Answered):
    """Token counts of texts."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingList(Answered):
    """The answer of POST /v1/embeddings."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage
    warnings: list[str] = []
    explanation: Explanation | None = None


class ModelEntry(Answered):
    """A name of the served model."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    max_model_len: int


class ModelList(Answered):
    """The answer of GET /v1/models."""

    object: Literal["list"]
    data: list[ModelEntry]
