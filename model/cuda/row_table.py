"""RowTable: how the rows of a step are sampled, on the device after one copy."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from caravan.model.cuda import sampling_kernels as fields
from caravan.model.cuda.staging import Array, Staging
from caravan.model.sampling.sampler import (
    NUM_POSITIONS,
    SamplingRow,
    banned_tokens,
    has_penalties,
    is_adjusted,
    is_greedy,
    needs_mask,
)
from caravan.model.sampling.sampling_params import SamplingParams

LEAF = 128  # numbers that numpy sums without splitting them
STAGED_BYTES = 2**16  # more are staged where there are many biases


class RowTable:
    """Numbers and choices of each row, and biases of tokens, as arrays for the device.

    What follows from a row's parameters is kept while the row keeps them.
    """

    numbers: Tensor  # float64 [fields.NUM_NUMBERS * num_rows] on the device
    choices: Tensor  # int32 [fields.NUM_CHOICES * num_rows]
    starts: Tensor  # int32 [num_rows + 1], of the biases of each row
    bias_tokens: Tensor  # int32
    bias_values: Tensor  # float32

    def __init__(self, num_rows: int, vocab_size: int, device: torch.device) -> None:
        assert num_rows % 16 == 0, "parts of the buffer start at multiples of 16 bytes"
        self.num_rows = num_rows
        self.vocab_size = vocab_size
        self._staging = Staging(STAGED_BYTES, device)
        self._params: list[SamplingParams | None] = [None] * num_rows
        self._numbers = np.zeros((fields.NUM_NUMBERS, num_rows))
        self._choices = np.zeros((fields.NUM_CHOICES, num_rows), np.int32)
        self._seeds = np.zeros(num_rows, np.uint64)  # mixed
        self._biased: set[int] = set()  # rows that may have biases
        self.stage([], [])

    def stage(self, rows: Sequence[SamplingRow], slots: Sequence[int], *, attempt: int = 0) -> None:
        """Copy the parameters of rows to the device by themselves; see `arrays`."""
        self.place(*self._staging.copy(self._staging.stage(self.arrays(rows, slots, attempt=attempt))))

    def place(self, numbers: Tensor, choices: Tensor, starts: Tensor, bias_tokens: Tensor, bias_values: Tensor) -> None:
        """Let the kernels read these tensors, the `arrays` of rows on the device."""
        self.numbers, self.choices, self.starts = numbers, choices, starts
        self.bias_tokens, self.bias_values = bias_tokens, bias_values

    def arrays(self, rows: Sequence[SamplingRow], slots: Sequence[int], *, attempt: int = 0) -> list[Array]:
        """Return the parameters of rows as the arrays of `place`, until the next call; other rows are skipped.

        slots: the row of the token history that counts each row's tokens, or -1.
        attempt: 1 for rows that are sampled again, after their mask.
        """
        count = len(rows)
        assert count == len(slots) <= self.num_rows
        for index, row in enumerate(rows):
            if row.params is not self._params[index]:
                self._set(index, row.params)
        self._clear(count)
        positions = np.fromiter((row.position for row in rows), np.uint64, count)
        positions += np.uint64(attempt * NUM_POSITIONS)
        self._numbers[fields.UNIFORM.value, :count] = uniforms(self._seeds[:count], positions)
        self._choices[fields.SLOT.value, :count] = slots
        entries = {index: self._biases(rows[index]) for index in sorted(self._biased)}
        for index in self._biased:
            self._choices[fields.IS_ADJUSTED.value, index] = is_adjusted(rows[index])
        choices = self._choices
        if attempt == 0:  # a row that waits for its mask gets its best token
            waiting = [index for index, row in enumerate(rows) if row.allows is not None and needs_mask(row)]
            if waiting:
                choices = choices.copy()
                choices[fields.KIND.value, waiting] = fields.GREEDY.value
        lengths = np.zeros(self.num_rows + 1, np.int32)
        lengths[1:][list(entries)] = [len(biases) for biases in entries.values()]
        tokens = [token_id for biases in entries.values() for token_id in biases]
        values = [bias for biases in entries.values() for bias in biases.values()]
        return [
            self._numbers,
            choices,
            np.cumsum(lengths, dtype=np.int32),
            np.array(tokens or [0], np.int32),  # a kernel wants an address
            np.array(values or [0], np.float32),
        ]

    def _set(self, index: int, params: SamplingParams) -> None:
        """Write what follows from the parameters of a row."""
        self._params[index] = params
        numbers, choices = self._numbers[:, index], self._choices[:, index]
        numbers[fields.TEMPERATURE.value] = params.temperature
        numbers[fields.TOP_P.value] = params.top_p
        numbers[fields.MIN_P.value] = params.min_p
        numbers[fields.PRESENCE.value] = params.presence_penalty
        numbers[fields.FREQUENCY.value] = params.frequency_penalty
        numbers[fields.REPETITION.value] = params.repetition_penalty
        is_best = is_greedy(SamplingRow(params, 0))
        choices[fields.KIND.value] = (fields.GREEDY if is_best else fields.DRAWN).value
        choices[fields.TOP_K.value] = min(params.top_k, 2**31 - 1)
        choices[fields.IS_ADJUSTED.value] = has_penalties(params)
        choices[fields.NUM_TOP.value] = -1 if params.num_logprobs is None else params.num_logprobs
        self._seeds[index : index + 1] = mixed(np.array([params.seed], np.uint64))
        if params.logit_bias or params.bad_words or (params.min_tokens and params.stop_token_ids):
            self._biased.add(index)
        else:
            self._biased.discard(index)

    def _clear(self, count: int) -> None:
        """Have the rows from `count` on skipped."""
        self._params[count:] = [None] * (self.num_rows - count)
        self._choices[:, count:] = 0
        for field in (fields.SLOT, fields.MASK, fields.NUM_TOP):
            self._choices[field.value, count:] = -1
        self._choices[fields.MASK.value] = -1
        self._biased = {index for index in self._biased if index < count}

    def _biases(self, row: SamplingRow) -> dict[int, float]:
        """Return what is added to scores of a row; minus infinity replaces them."""
        biases = {**row.params.logit_bias, **dict.fromkeys(banned_tokens(row), -math.inf)}
        assert all(0 <= token_id < self.vocab_size for token_id in biases)
        return biases


def uniforms(mixed_seeds: NDArray[np.uint64], positions: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Return `caravan.model.sampling.sampler.uniform` of each seed, which is mixed already, and position."""
    words = mixed(mixed_seeds + (positions + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15))
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def mixed(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return the finalizer of SplitMix64 of each word."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def summation_tree(count: int) -> tuple[list[int], list[int]]:
    """Return starts and lengths of the leaves in which numpy sums `count` numbers, a power of two of them.

    Empty leaves complete the tree: neighbours are added, then neighbouring sums, and so on. numpy halves a range of
    more than 128 numbers at a multiple of 8 (pairwise summation: Higham, 1993, The accuracy of floating point
    summation, SIAM J. Sci. Comput. 14).
    """

    def leaves(start: int, length: int) -> list[tuple[int, int]]:
        if length <= LEAF:
            return [(start, length)]
        half = length // 2 // 8 * 8
        sides = [leaves(start, half), leaves(start + half, length - half)]
        width = max(len(side) for side in sides)
        return [leaf for side in sides for leaf in [*side, *[(start, 0)] * (width - len(side))]]

    found = leaves(0, count)
    return [start for start, _ in found], [length for _, length in found]
