"""SamplingParams: how the tokens of a request are sampled and when it ends."""

from typing import Literal

import msgspec

Pooling = Literal["mean", "last"]  # of the hidden states of a prompt


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
    stop_token_ids: tuple[int, ...] = ()  # each ends the request; the model's own end tokens are among them
    num_logprobs: int | None = None  # None: no logprobs; 0: of the chosen token only
    num_prompt_logprobs: int | None = None  # the same for the prompt's own tokens, from the second on
