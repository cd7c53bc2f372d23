"""Warm-up of a GPU: everything that requests can make it do is done once before the first of them.

Triton compiles a kernel in its first launch, which takes seconds, and a graph is recorded once. The step that needs
most memory runs here, too: as many sequences as fit, and in one of them all tokens that are left. So a memory that is
too small is noticed now.
"""

from collections.abc import Iterator

import numpy as np
import torch

from caravan.model.sampling.sampler import Masks, SamplingRow
from caravan.model.sampling.sampling_params import SamplingParams
from caravan.scheduler.block_pool import num_blocks_for
from caravan.scheduler.config import EngineConfig
from caravan.scheduler.device_step import DeviceSteps
from caravan.scheduler.draft_model import DraftModel
from caravan.scheduler.messages import Request
from caravan.scheduler.sampling_launch import LaunchedSampler
from caravan.scheduler.sequence import ScheduledSequence, Sequence


def warm_up(
    steps: DeviceSteps,
    sampler: LaunchedSampler,
    draft_model: DraftModel | None,
    config: EngineConfig,
    vocab_size: int,
    device: torch.device,
) -> None:
    """Record all decode steps; run prompts of each size, rows with each option, and the draft model.

    The KV pool must be empty: the numbers of its first block change.
    """
    steps.warm_up()
    sizes = step_sizes(config.max_batch_tokens)
    for made in (most_sequences(config), *(sequences(size, config.max_model_len, config) for size in sizes)):
        plan = [ScheduledSequence(one, one.num_tokens) for one in made]
        steps.run(steps.stage(plan, [1] * len(plan))).result()
    steps.forget_rows()
    sample_masked(sampler, torch.zeros(1, vocab_size, device=device))
    if draft_model is not None:
        for num_tokens in step_sizes(config.max_batch_tokens):
            draft_model.warm_up(sequences(num_tokens, config.max_draft_model_len, config))


def step_sizes(max_batch_tokens: int) -> Iterator[int]:
    """Yield numbers of tokens, the largest first and each half of the one before: kernels have tiles for ranges."""
    while max_batch_tokens:
        yield max_batch_tokens
        max_batch_tokens //= 2


def sequences(num_tokens: int, max_len: int, config: EngineConfig) -> list[Sequence]:
    """Return sequences with num_tokens tokens in all, or as many as a step can have, all in the first block."""
    made: list[Sequence] = []
    while num_tokens and len(made) < config.max_num_seqs:
        made.append(_sequence(min(num_tokens, max_len), config))
        num_tokens -= made[-1].num_tokens
    return made


def most_sequences(config: EngineConfig) -> list[Sequence]:
    """Return as many sequences as a step can have, all of one token but the last, which has what is left."""
    num_short = min(config.max_num_seqs, config.max_batch_tokens) - 1
    lengths = [1] * num_short + [min(config.max_batch_tokens - num_short, config.max_model_len)]
    return [_sequence(length, config) for length in lengths]


def _sequence(length: int, config: EngineConfig) -> Sequence:
    params = SamplingParams(seed=0, max_tokens=1, num_logprobs=1, presence_penalty=1.0)
    sequence = Sequence.of(Request(request_id=0, prompt_token_ids=[0] * length, params=params))
    sequence.block_table = [0] * num_blocks_for(length, config.block_size)
    return sequence


def sample_masked(sampler: LaunchedSampler, logits: torch.Tensor) -> None:
    """Sample a row of logits [1, vocab_size] with penalties, and again with a mask, which allows all tokens."""
    num_bytes = -(-logits.shape[1] // 8)

    def masks(rows: list[int]) -> Masks:
        return np.full((len(rows), num_bytes), 255, np.uint8)

    params = SamplingParams(seed=0, max_tokens=1, repetition_penalty=2.0)
    sampler.sample(logits, [SamplingRow(params, 0, [0], [0], lambda _: False)], masks)
