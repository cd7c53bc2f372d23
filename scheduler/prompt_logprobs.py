"""Prompt log-probabilities and pooling: what a request asks for of the tokens of its prompt."""

import torch
from torch import Tensor

from caravan.model.pooling import pooled
from caravan.model.sampling.sample import Sample
from caravan.model.sampling.sampler import log_probabilities, with_logprobs
from caravan.scheduler.engine_model import EngineModel
from caravan.scheduler.prompt_result import PromptResult
from caravan.scheduler.sequence import ScheduledSequence

MAX_SCORED_ROWS = 64  # a row of logits is as long as the vocabulary, so those of a long prompt are computed in pieces


def compute_prompts(
    model: EngineModel, plan: list[ScheduledSequence], hidden: Tensor
) -> tuple[Tensor, dict[int, PromptResult]]:
    """Return the hidden states of the rows to sample from, and the results for prompts, by index in the plan.

    hidden [S, hidden_size] has, for each scheduled sequence, its scored rows and then those to sample from.
    """
    results: dict[int, PromptResult] = {}
    sampled_rows: list[int] = []
    end_rows: dict[int, int] = {}  # of prompts after which tokens have their log-probabilities
    start = 0
    for index, scheduled in enumerate(plan):
        end = start + len(scheduled.scored_rows(0))
        if scheduled.scored_positions:
            results[index] = _result(model, scheduled, hidden[start:end])
            if scheduled.sequence.is_end_scored and scheduled.scored_positions.stop == scheduled.sequence.scored_end:
                end_rows[index] = end if scheduled.num_logits else end - 1
        start = end + scheduled.num_logits
        sampled_rows += range(end, start)
    for indices in (list(end_rows)[i : i + MAX_SCORED_ROWS] for i in range(0, len(end_rows), MAX_SCORED_ROWS)):
        logprobs = log_probabilities(model.logits(hidden[[end_rows[index] for index in indices]]))
        for index, row in zip(indices, logprobs, strict=True):
            wanted = list(plan[index].sequence.request.params.logprob_token_ids)
            results[index] = results[index]._replace(token_logprobs=row[wanted].tolist())
    return hidden[sampled_rows], results


def _result(model: EngineModel, scheduled: ScheduledSequence, hidden: Tensor) -> PromptResult:
    request = scheduled.sequence.request
    if request.pooling is not None:
        return PromptResult(pool=pooled(scheduled.sequence.pool, model.norm(hidden)))
    if request.params.num_prompt_logprobs is None:
        return PromptResult()  # only the end of the prompt is scored
    positions = scheduled.scored_positions
    following = request.prompt_token_ids[positions.start + 1 : positions.stop + 1]
    logprobs: list[Sample] = []
    for rows in torch.split(hidden[: len(following)], MAX_SCORED_ROWS) if following else ():
        token_ids = following[len(logprobs) : len(logprobs) + len(rows)]
        logprobs += with_logprobs(model.logits(rows), token_ids, request.params.num_prompt_logprobs)
    return PromptResult(logprobs=logprobs)
