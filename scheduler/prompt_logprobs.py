"""Prompt log-probabilities and pooling: what a request asks for of the tokens of its prompt."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from caravan.model.llama import Llama
from caravan.model.pooling import Pool, pooled
from caravan.model.sampling.sample import Sample
from caravan.model.sampling.sampler import with_logprobs
from caravan.scheduler.sequence import ScheduledSequence

MAX_SCORED_ROWS = 64  # a row of logits is as long as the vocabulary, so those of a long prompt are computed in pieces


class PromptResult(NamedTuple):
    """What one step computed of one prompt."""

    logprobs: Sequence[Sample] = ()  # of the tokens after the scored positions
    pool: Pool | None = None

    @property
    def is_finite(self) -> bool:
        """Whether every number is finite; a log-probability may be minus infinity."""
        is_sound = all(sample.logprob is not None and sample.logprob <= 0 for sample in self.logprobs)
        return is_sound and (self.pool is None or self.pool.is_finite)


def compute_prompts(
    model: Llama, plan: list[ScheduledSequence], hidden: Tensor
) -> tuple[Tensor, dict[int, PromptResult]]:
    """Return the hidden states of the rows to sample from, and the results for prompts, by index in the plan.

    hidden [S, hidden_size] has, for each scheduled sequence, its scored rows and then those to sample from.
    """
    if not any(scheduled.scored_positions for scheduled in plan):
        return hidden, {}
    results: dict[int, PromptResult] = {}
    sampled_rows: list[int] = []
    start = 0
    for index, scheduled in enumerate(plan):
        end = start + len(scheduled.scored_positions)
        if end > start:
            results[index] = _result(model, scheduled, hidden[start:end])
        start = end + scheduled.num_logits
        sampled_rows += range(end, start)
    return hidden[sampled_rows], results


def _result(model: Llama, scheduled: ScheduledSequence, hidden: Tensor) -> PromptResult:
    request = scheduled.sequence.request
    if request.pooling is not None:
        return PromptResult(pool=pooled(scheduled.sequence.pool, model.norm(hidden)))
    assert request.params.num_prompt_logprobs is not None, "nothing else is scored"
    positions = scheduled.scored_positions
    following = request.prompt_token_ids[positions.start + 1 : positions.stop + 1]
    logprobs: list[Sample] = []
    for rows in torch.split(hidden, MAX_SCORED_ROWS):
        token_ids = following[len(logprobs) : len(logprobs) + len(rows)]
        logprobs += with_logprobs(model.logits(rows), token_ids, request.params.num_prompt_logprobs)
    return PromptResult(logprobs=logprobs)
