"""SamplingParams: how the tokens of a request are sampled and when it ends."""

from typing import Literal

import msgspec

Pooling = Literal["mean", "last"]  # of the hidden states of a prompt


MAX_PATTERN = 64  # tokens


class Repetition(msgspec.Struct, frozen=True, array_like=True):
    """A text that repeats itself: its last tokens are the same pattern several times."""

    min_size: int  # of the pattern, in tokens
    max_size: int
    min_count: int  # times


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The sampling parameters of one request, validated by the server."""

    seed: int  # 0 <= seed < 2**64; with the output position it is the only source of randomness
    max_tokens: int  # 0: only the prompt is computed
    min_tokens: int = 0  # stop tokens are banned before this many tokens
    temperature: float = 1.0  # 0: greedy
    top_k: int = 0  # 0: all tokens
    top_p: float = 1.0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] = msgspec.field(default_factory=dict)
    bad_words: tuple[tuple[int, ...], ...] = ()  # no output has one of these sequences of tokens
    allowed_token_ids: tuple[int, ...] = ()  # no output has others; empty: all
    stop_token_ids: tuple[int, ...] = ()  # each ends the request; the model's own end tokens are among them
    repetition: Repetition | None = None  # ends the request
    num_logprobs: int | None = None  # None: no logprobs; 0: of the chosen token only
    num_prompt_logprobs: int | None = None  # the same for the prompt's own tokens, from the second on
    logprob_token_ids: tuple[int, ...] = ()  # whose log-probabilities after the prompt are wanted, whatever is sampled
