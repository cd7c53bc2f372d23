"""RowTable: how the rows of a step are sampled, on the device after one copy."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from caravan.model.cuda import sampling_kernels as fields
from caravan.model.sampling.sampler import NUM_POSITIONS, SamplingRow, is_adjusted, is_greedy, needs_mask, uniform

LEAF = 128  # numbers that numpy sums without splitting them
FIRST_NUM_BIASES = 1024


class RowTable:
    """Numbers and choices of each row, and biases of tokens, in one buffer of host memory and one of the device.

    Two buffers of pinned host memory take turns: while the copy of one step is in flight, the next can be written.
    """

    def __init__(self, num_rows: int, vocab_size: int, device: torch.device) -> None:
        assert num_rows % 16 == 0, "parts of the buffer start at multiples of 16 bytes"
        self.num_rows = num_rows
        self.vocab_size = vocab_size
        self._device = device
        self._turn = 0
        self._allocate(FIRST_NUM_BIASES)

    def stage(self, rows: Sequence[SamplingRow], slots: Sequence[int], *, attempt: int = 0) -> bool:
        """Copy the parameters of rows; the others of the table are skipped.

        slots: the row of the token history that counts each row's tokens, or -1.
        attempt: 1 for rows that are sampled again, after their mask.
        Returns whether new buffers were needed: CUDA graphs with the old ones must then be captured again.
        """
        assert len(rows) == len(slots) <= self.num_rows
        entries = [self._biases(row) for row in rows]
        num_biases = sum(len(found) for found in entries)
        is_new = num_biases > self._max_biases
        if is_new:
            self._allocate(1 << num_biases.bit_length())
        self._turn = 1 - self._turn
        host = self._host[self._turn]
        numbers, choices, starts, tokens, values = host.arrays
        choices[fields.KIND.value] = fields.SKIPPED.value
        choices[fields.SLOT.value] = -1
        choices[fields.IS_ADJUSTED.value] = 0
        choices[fields.MASK.value] = -1
        choices[fields.NUM_TOP.value] = -1
        place = 0
        for index, (row, slot, biases) in enumerate(zip(rows, slots, entries, strict=True)):
            numbers[:, index] = _numbers(row, attempt)
            choices[:, index] = _choices(row, slot, attempt)
            starts[index] = place
            for token_id, bias in biases.items():
                tokens[place], values[place] = token_id, bias
                place += 1
        starts[len(rows) :] = place
        self._device_bytes.copy_(host.content, non_blocking=True)
        return is_new

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
        numbers, choices, starts, tokens, values = self._device_bytes.split(sizes)
        self.numbers = numbers.view(torch.float64)  # [fields.NUM_NUMBERS * num_rows]
        self.choices = choices.view(torch.int32)  # [fields.NUM_CHOICES * num_rows]
        self.starts = starts.view(torch.int32)  # of the biases of each row, [num_rows + 1]
        self.bias_tokens = tokens.view(torch.int32)
        self.bias_values = values.view(torch.float32)


class _Buffer:
    """Host memory of a table, as bytes and as arrays."""

    def __init__(self, content: Tensor, sizes: list[int]) -> None:
        self.content = content
        numbers, choices, starts, tokens, values = (part.numpy() for part in content.split(sizes))
        num_rows = len(numbers) // (8 * fields.NUM_NUMBERS)
        self.arrays = (
            numbers.view(np.float64).reshape(-1, num_rows),
            choices.view(np.int32).reshape(-1, num_rows),
            starts.view(np.int32)[: num_rows + 1],
            tokens.view(np.int32),
            values.view(np.float32),
        )


def _sizes(num_rows: int, max_biases: int) -> list[int]:
    """Return the bytes of numbers, choices, starts, tokens and values; each part starts at a multiple of 16."""
    counts = [8 * fields.NUM_NUMBERS * num_rows, 4 * fields.NUM_CHOICES * num_rows, 4 * (num_rows + 1)]
    return [-(-count // 16) * 16 for count in (*counts, 4 * max_biases, 4 * max_biases)]


def _numbers(row: SamplingRow, attempt: int) -> NDArray[np.float64]:
    """Return the column of a row in the table of numbers; the random number depends on seed and position alone."""
    params = row.params
    values = {
        fields.TEMPERATURE.value: params.temperature,
        fields.TOP_P.value: params.top_p,
        fields.MIN_P.value: params.min_p,
        fields.PRESENCE.value: params.presence_penalty,
        fields.FREQUENCY.value: params.frequency_penalty,
        fields.REPETITION.value: params.repetition_penalty,
        fields.UNIFORM.value: uniform(params.seed, row.position + attempt * NUM_POSITIONS),
    }
    return np.array([values[field] for field in range(fields.NUM_NUMBERS)])


def _choices(row: SamplingRow, slot: int, attempt: int) -> NDArray[np.int32]:
    """Return the column of a row in the table of choices. A row that waits for its mask gets its best token."""
    is_best = is_greedy(row) or (attempt == 0 and needs_mask(row))
    num_logprobs = row.params.num_logprobs
    values = {
        fields.KIND.value: (fields.GREEDY if is_best else fields.DRAWN).value,
        fields.TOP_K.value: min(row.params.top_k, 2**31 - 1),
        fields.SLOT.value: slot,
        fields.IS_ADJUSTED.value: int(is_adjusted(row)),
        fields.MASK.value: -1,
        fields.NUM_TOP.value: -1 if num_logprobs is None else num_logprobs,
    }
    return np.array([values[field] for field in range(fields.NUM_CHOICES)], np.int32)


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
