"""RowTable: how the rows of a step are sampled, on the device after one copy."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from caravan.model.cuda import sampling_kernels as fields
from caravan.model.sampling.sampler import (
    NUM_POSITIONS,
    SamplingRow,
    is_adjusted,
    is_greedy,
    needs_history,
    needs_mask,
)
from caravan.model.sampling.sampling_params import SamplingParams

LEAF = 128  # numbers that numpy sums without splitting them
FIRST_NUM_BIASES = 1024


class RowTable:
    """Numbers and choices of each row, and biases of tokens, in one buffer of host memory and one of the device.

    What follows from a row's parameters is kept while the row keeps them, so that most of a step is one copy. Two
    buffers of pinned host memory take turns: while the copy of one step is in flight, the next can be written.
    """

    def __init__(self, num_rows: int, vocab_size: int, device: torch.device) -> None:
        assert num_rows % 16 == 0, "parts of the buffer start at multiples of 16 bytes"
        self.num_rows = num_rows
        self.vocab_size = vocab_size
        self._device = device
        self._turn = 0
        self._params: list[SamplingParams | None] = [None] * num_rows
        self._numbers = np.zeros((fields.NUM_NUMBERS, num_rows))
        self._choices = np.zeros((fields.NUM_CHOICES, num_rows), np.int32)
        self._seeds = np.zeros(num_rows, np.uint64)  # mixed
        self._biased: set[int] = set()  # rows that may have biases
        self._clear(0)
        self._allocate(FIRST_NUM_BIASES)

    def stage(self, rows: Sequence[SamplingRow], slots: Sequence[int], *, attempt: int = 0) -> bool:
        """Copy the parameters of rows; the others of the table are skipped.

        slots: the row of the token history that counts each row's tokens, or -1.
        attempt: 1 for rows that are sampled again, after their mask.
        Returns whether new buffers were needed: CUDA graphs with the old ones must then be captured again.
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
        num_biases = sum(len(biases) for biases in entries.values())
        is_new = num_biases > self._max_biases
        if is_new:
            self._allocate(1 << num_biases.bit_length())
        self._turn = 1 - self._turn
        host = self._host[self._turn]
        host.numbers[:], host.choices[:], host.starts[:] = self._numbers, self._choices, num_biases
        if attempt == 0:  # a row that waits for its mask gets its best token
            waiting = [index for index, row in enumerate(rows) if row.allows is not None and needs_mask(row)]
            host.choices[fields.KIND.value, waiting] = fields.GREEDY.value
        if entries:
            lengths = np.zeros(self.num_rows, np.int32)
            lengths[list(entries)] = [len(biases) for biases in entries.values()]
            host.starts[:-1] = np.cumsum(lengths) - lengths
            host.tokens[:num_biases] = [token_id for biases in entries.values() for token_id in biases]
            host.values[:num_biases] = [bias for biases in entries.values() for bias in biases.values()]
        self._device_bytes.copy_(host.content, non_blocking=True)
        return is_new

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
        choices[fields.IS_ADJUSTED.value] = needs_history(params)
        choices[fields.NUM_TOP.value] = -1 if params.num_logprobs is None else params.num_logprobs
        self._seeds[index : index + 1] = mixed(np.array([params.seed], np.uint64))
        if params.logit_bias or (params.min_tokens and params.stop_token_ids):
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
        is_early = row.position < row.params.min_tokens
        banned = row.params.stop_token_ids if is_early else ()
        biases = {**row.params.logit_bias, **dict.fromkeys(banned, -math.inf)}
        assert all(0 <= token_id < self.vocab_size for token_id in biases)
        return biases

    def _allocate(self, max_biases: int) -> None:
        self._max_biases = max_biases
        sizes = _sizes(self.num_rows, max_biases)
        is_pinned = self._device.type == "cuda"
        self._host = [_Buffer(torch.empty(sum(sizes), dtype=torch.uint8, pin_memory=is_pinned), sizes) for _ in "01"]
        self._device_bytes = torch.empty(sum(sizes), dtype=torch.uint8, device=self._device)
        numbers, choices, starts, tokens, values = torch.split(self._device_bytes, sizes)
        self.numbers = numbers.view(torch.float64)  # [fields.NUM_NUMBERS * num_rows]
        self.choices = choices.view(torch.int32)  # [fields.NUM_CHOICES * num_rows]
        self.starts = starts.view(torch.int32)  # of the biases of each row, [num_rows + 1]
        self.bias_tokens = tokens.view(torch.int32)
        self.bias_values = values.view(torch.float32)


class _Buffer:
    """Host memory of a table, as bytes and as arrays."""

    def __init__(self, content: Tensor, sizes: list[int]) -> None:
        self.content = content
        numbers, choices, starts, tokens, values = (part.numpy() for part in torch.split(content, sizes))
        num_rows = len(numbers) // (8 * fields.NUM_NUMBERS)
        self.numbers = numbers.view(np.float64).reshape(-1, num_rows)
        self.choices = choices.view(np.int32).reshape(-1, num_rows)
        self.starts = starts.view(np.int32)[: num_rows + 1]
        self.tokens = tokens.view(np.int32)
        self.values = values.view(np.float32)


def _sizes(num_rows: int, max_biases: int) -> list[int]:
    """Return the bytes of numbers, choices, starts, tokens and values; each part starts at a multiple of 16."""
    counts = [8 * fields.NUM_NUMBERS * num_rows, 4 * fields.NUM_CHOICES * num_rows, 4 * (num_rows + 1)]
    return [-(-count // 16) * 16 for count in (*counts, 4 * max_biases, 4 * max_biases)]


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
