"""What a request wants to know of its prompt: log-probabilities of its tokens, or one vector for all of it."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from caravan.model.llama import Llama
from caravan.model.pooling import Pool, pooled
from caravan.model.sampling.sample import Sample
from caravan.model.sampling.sampler import with_logprobs
from caravan.scheduler.sequence import ScheduledSequence

MAX_SCORED_ROWS = 64  # logits are as long as the vocabulary: of a long prompt they are not held all at once


class PromptReading(NamedTuple):
    """What one step read of one prompt."""

    logprobs: Sequence[Sample] = ()  # of the tokens behind the positions that were read
    pool: Pool | None = None

    @property
    def is_finite(self) -> bool:
        """Whether every number is one, minus infinity apart."""
        is_sound = all(sample.logprob is not None and sample.logprob <= 0 for sample in self.logprobs)
        return is_sound and (self.pool is None or self.pool.is_finite)


def read_prompts(
    model: Llama, plan: list[ScheduledSequence], hidden: Tensor
) -> tuple[Tensor, dict[int, PromptReading]]:
    """Return the hidden states of the rows to draw from, and what was read of prompts, by place in the plan.

    hidden [S, hidden_size] has, for each scheduled sequence, the rows to be read and then those to draw from.
    """
    if not any(scheduled.read_positions for scheduled in plan):
        return hidden, {}
    readings: dict[int, PromptReading] = {}
    drawn_rows: list[int] = []
    start = 0
    for index, scheduled in enumerate(plan):
        end = start + len(scheduled.read_positions)
        if end > start:
            readings[index] = _read(model, scheduled, hidden[start:end])
        start = end + scheduled.num_logits
        drawn_rows += range(end, start)
    return hidden[drawn_rows], readings


def _read(model: Llama, scheduled: ScheduledSequence, hidden: Tensor) -> PromptReading:
    request = scheduled.sequence.request
    if request.pooling is not None:
        return PromptReading(pool=pooled(scheduled.sequence.pool, model.norm(hidden)))
    assert request.params.num_prompt_logprobs is not None, "nothing else is read"
    positions = scheduled.read_positions
    following = request.prompt_token_ids[positions.start + 1 : positions.stop + 1]
    scored: list[Sample] = []
    for rows in torch.split(hidden, MAX_SCORED_ROWS):
        token_ids = following[len(scored) : len(scored) + len(rows)]
        scored += with_logprobs(model.logits(rows), token_ids, request.params.num_prompt_logprobs)
    return PromptReading(logprobs=scored)
