"""ResponseModel: the base of all response bodies, and the objects that several of them have.

The OpenAPI document is generated from these classes. A field that is UNSET is omitted; the others are written in the
order of their definition.
"""

from typing import Literal

import msgspec


class ResponseModel(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A part of a response: these fields and no others."""


class CachedTokens(ResponseModel, kw_only=True):
    """Details of the prompt tokens."""

    cached_tokens: int


class Usage(ResponseModel, kw_only=True):
    """Token counts."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens


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
