"""PromptJob: one prompt of a request, and what is asked of it."""

from dataclasses import dataclass

from caravan.model.sampling.sampling_params import Pooling, SamplingParams
from caravan.server.generation.text_stream import ShownPrompt


@dataclass(frozen=True, kw_only=True)
class PromptJob:
    """One prompt with the parameters of each of its choices."""

    token_ids: list[int]
    params: list[SamplingParams]
    shown: ShownPrompt | None = None  # the part of the prompt that the response includes
    pooling: Pooling | None = None  # if set, the result is one vector and no tokens
    group: int = 0  # of jobs that begin with the same num_shared_tokens tokens, which are then computed once
    num_shared_tokens: int = 0
