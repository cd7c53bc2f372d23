"""Sampling under a grammar: only what it allows, as often as if the rest had been masked before the draw."""

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from caravan.model.sampling.sampler import FindMasks, SamplingRow, sample
from caravan.model.sampling.sampling_params import SamplingParams

LOGITS = torch.tensor([2.0, 1.5, 1.0, 0.5, 0.0, -1.0, -2.0, -3.0, 0.7, 0.2])
NUM_DRAWS = 8000


def row(allowed: set[int] | None, position: int = 0, **params: Any) -> SamplingRow:
    asked = SamplingParams(**{"seed": 3, "max_tokens": NUM_DRAWS} | params)
    return SamplingRow(asked, position, allows=None if allowed is None else allowed.__contains__)


def masks_of(*sets: set[int] | None) -> FindMasks:
    """Return what finds the masks of rows of which each allows such a set."""

    def find(indices: list[int]) -> NDArray[np.uint8]:
        bits = np.zeros((len(indices), 32), dtype=np.uint8)  # padded as the grammar library pads it
        for place, index in enumerate(indices):
            bits[place, sorted(sets[index] or ())] = 1
        return np.packbits(bits, axis=1, bitorder="little")

    return find


def token_ids(logits: torch.Tensor, rows: list[SamplingRow], *sets: set[int] | None) -> list[int | None]:
    return [found.token_id if found else None for found in sample(logits, rows, masks_of(*sets))]


@pytest.mark.parametrize("allowed", [{0}, {7}, {0, 1, 2}, {5, 6, 7, 9}, set(range(10))])
def test_the_best_allowed_token_is_taken_at_temperature_zero(allowed: set[int]) -> None:
    best = max(allowed, key=lambda token_id: float(LOGITS[token_id]))
    assert token_ids(LOGITS.unsqueeze(0), [row(allowed, temperature=0)], allowed) == [best]


@pytest.mark.slow
@pytest.mark.parametrize("allowed", [{0, 4}, {5, 6, 9}, {1, 2, 3, 8}, set(range(10))])
@pytest.mark.parametrize("params", [{}, {"temperature": 2.0}, {"top_k": 2}, {"top_p": 0.6}, {"min_p": 0.5}])
def test_allowed_tokens_come_as_often_as_if_the_others_had_been_masked(
    allowed: set[int], params: dict[str, Any]
) -> None:
    masked = LOGITS.clone()
    masked[[token_id for token_id in range(10) if token_id not in allowed]] = -math.inf
    many = LOGITS.expand(NUM_DRAWS, -1)
    found = Counter(token_ids(many, [row(allowed, p, **params) for p in range(NUM_DRAWS)], *[allowed] * NUM_DRAWS))
    free = Counter(token_ids(masked.expand(NUM_DRAWS, -1), [row(None, p, **params) for p in range(NUM_DRAWS)]))
    assert set(found) <= allowed
    for token_id in allowed:
        share = (found[token_id] + free[token_id]) / (2 * NUM_DRAWS)
        tolerance = 4 * math.sqrt(2 * share * (1 - share) * NUM_DRAWS)  # of the difference of two counts
        assert abs(found[token_id] - free[token_id]) <= tolerance


@pytest.mark.parametrize("params", [{"temperature": 0}, {}, {"top_p": 0.5}])
def test_a_row_of_which_nothing_is_allowed_has_no_token_and_harms_no_other(params: dict[str, Any]) -> None:
    sets: tuple[set[int] | None, ...] = ({3}, set(), None)
    rows = [row(allowed, **params) for allowed in sets]
    found = token_ids(LOGITS.expand(3, -1), rows, *sets)
    assert found[:2] == [3, None]
    assert found[2] is not None


@pytest.mark.parametrize("params", [{"temperature": 0}, {}, {"top_k": 3}])
def test_a_constrained_row_gives_the_same_in_any_batch(params: dict[str, Any]) -> None:
    sets: list[set[int] | None] = [{index % 10, (3 * index + 1) % 10} if index % 3 else None for index in range(60)]
    rows = [
        row(allowed, index, num_logprobs=index % 3, logit_bias={index % 10: 1.0} if index % 4 == 0 else {}, **params)
        for index, allowed in enumerate(sets)
    ]
    logits = torch.randn(60, 10, generator=torch.Generator().manual_seed(1))
    before = logits.clone()
    together = sample(logits, rows, masks_of(*sets))
    assert torch.equal(logits, before)  # log-probabilities are the model's own
    alone = [sample(logits[i : i + 1], [rows[i]], masks_of(sets[i]))[0] for i in range(60)]
    assert together == alone
