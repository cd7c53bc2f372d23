"""Answered: what the bodies of all responses have in common.

They are sent as they are defined here, and the OpenAPI document is made of them. A field that is UNSET is left out; the
others are written in the order of their definition.
"""

from typing import Literal

import msgspec


class Answered(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A part of a response: these fields and no others."""


class CachedTokens(Answered, kw_only=True):
    """Of the prompt tokens."""

    cached_tokens: int


class Usage(Answered, kw_only=True):
    """Token counts."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens


class TokenLogprob(Answered, kw_only=True):
    """A token and its log-probability."""

    token: str
    logprob: float
    bytes: list[int]


class ChosenTokenLogprob(TokenLogprob, kw_only=True):
    """A token of a response, and the most probable ones in its place."""

    top_logprobs: list[TokenLogprob]


class ChatLogprobs(Answered, kw_only=True):
    """The tokens of a chat choice."""

    content: list[ChosenTokenLogprob]
    refusal: None = None


class CompletionLogprobs(Answered, kw_only=True):
    """The tokens of a completion choice, in parallel lists."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class PromptLogprob(Answered, kw_only=True):
    """The log-probability of a token at a position of the prompt."""

    logprob: float
    decoded_token: str


PromptLogprobs = list[dict[str, PromptLogprob] | None]  # by token id


class Head(Answered, kw_only=True):
    """What all responses with choices begin with."""

    id: str
    object: Literal["text_completion", "chat.completion", "chat.completion.chunk"]
    created: int
    model: str
