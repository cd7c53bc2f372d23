"""ResponseModel: the base of all response bodies, and the objects that several of them have.

The OpenAPI document is generated from these classes. A field that is UNSET is omitted; the others are written in the
order of their definition.
"""

from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType


class ResponseModel(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A part of a response: these fields and no others."""


class CachedTokens(ResponseModel, kw_only=True):
    """Details of the prompt tokens."""

    cached_tokens: int


StopReason = Literal["repetition"]  # why a choice with the finish reason stop has ended, if nothing else says it


class Timings(ResponseModel, kw_only=True):
    """Where the time of a request went so far, in milliseconds."""

    queue_ms: float  # from its submission to the engine until its first choice joined the batch
    prefill_ms: float  # then until the first token
    decode_ms: float  # then until the last token
    tokens_per_second: float  # in these milliseconds, over all choices; 0 with a single token


class ReasoningTokens(ResponseModel, kw_only=True):
    """Details of the generated tokens."""

    reasoning_tokens: int


class Usage(ResponseModel, kw_only=True):
    """Token counts."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens
    completion_tokens_details: ReasoningTokens | UnsetType = UNSET  # of models that think
    timings: Timings | UnsetType = UNSET  # if requested


class TokenLogprob(ResponseModel, kw_only=True):
    """A token and its log-probability."""

    token: str
    logprob: float
    bytes: list[int]


class ChosenTokenLogprob(TokenLogprob, kw_only=True):
    """A generated token, and the most probable ones at its position."""

    top_logprobs: list[TokenLogprob]


class ChatLogprobs(ResponseModel, kw_only=True):
    """The tokens of a chat choice."""

    content: list[ChosenTokenLogprob]
    refusal: None = None
    reasoning: list[ChosenTokenLogprob] | UnsetType = UNSET  # the tokens of the thought


class CompletionLogprobs(ResponseModel, kw_only=True):
    """The tokens of a completion choice, in parallel lists."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class PromptLogprob(ResponseModel, kw_only=True):
    """The log-probability of a token at a position of the prompt."""

    logprob: float
    decoded_token: str


PromptLogprobs = list[dict[str, PromptLogprob] | None]  # by token id


class Head(ResponseModel, kw_only=True):
    """The first fields of all responses with choices."""

    id: str
    object: Literal["text_completion", "chat.completion", "chat.completion.chunk"]
    created: int
    model: str
    system_fingerprint: str | None = None  # changes when the bits of answers may change
