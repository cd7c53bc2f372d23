"""The sampler on a GPU: the same tokens as `caravan.model.sampling.sampler` for the same logits.

Random numbers are computed by the host, from seed and position. What decides a token is computed in the same order of
sums as on the CPU; docs/gpu.md says where a rounding may differ, and how often.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
import triton
from torch import Tensor

from caravan.model.cuda import logprob_kernels, picking_kernels, sampling_kernels
from caravan.model.cuda.row_table import RowTable, summation_tree
from caravan.model.cuda.token_history import TokenHistory
from caravan.model.sampling.sample import Sample
from caravan.model.sampling.sampler import BLOCK_WIDTH, FindMasks, Masks, SamplingRow, forbids, needs_history

CHUNK = 4096  # tokens of a row that one program reads
BIASES = 128  # biases that one program adds at once
OPTIONS = {"num_warps": 4, "num_stages": 1, "enable_fp_fusion": False}  # of every kernel


def padded(count: int) -> int:
    """Return the multiple of 16 that follows, so that every row of a tensor can be read 16 bytes at once."""
    return -(-count // 16) * 16


class CudaSampler:
    """Buffers and kernels for up to num_rows rows of a vocabulary.

    `sample` does a whole step. `stage` and `launch` are its parts without a host read, for CUDA graphs and overlapped
    steps: `stage` copies the rows' parameters, `launch` starts kernels alone, with the same arguments in each step.
    """

    def __init__(self, num_rows: int, vocab_size: int, device: torch.device, *, num_slots: int = 0) -> None:
        """Allocate the buffers: 12 bytes for each row and token, and 4 for each slot of the history and token.

        num_slots: texts whose tokens `history` counts on the device, for steps that do not wait for each other's
        tokens.
        """
        num_rows = padded(num_rows)  # columns of the table then start at multiples of 16 bytes
        self.num_rows = num_rows
        self.vocab_size = vocab_size
        self.table = RowTable(num_rows, vocab_size, device)
        self.tokens = torch.full((num_rows,), -1, dtype=torch.int32, device=device)  # -1: the row has no sound logit
        self.history = TokenHistory(num_slots, vocab_size, device)
        self._own_history: TokenHistory | None = None  # of rows that bring their tokens with them
        self._device = device
        self._width = math.gcd(vocab_size, BLOCK_WIDTH)
        self._num_blocks = vocab_size // self._width
        self._num_chunks = triton.cdiv(vocab_size, CHUNK)
        self._num_groups = triton.cdiv(vocab_size, sampling_kernels.GROUP.value)
        starts, lengths = summation_tree(self._num_blocks)
        self._num_leaves = len(starts)
        self._starts = torch.tensor(starts, dtype=torch.int32).to(device)
        self._lengths = torch.tensor(lengths, dtype=torch.int32).to(device)

        def empty(width: int, dtype: torch.dtype) -> Tensor:
            return torch.empty(num_rows, width, dtype=dtype, device=device)

        self._scores = empty(vocab_size, torch.float32)
        self._weights = empty(vocab_size, torch.float32)
        self._candidates = empty(vocab_size, torch.int32)
        self._maxima = empty(self._num_chunks, torch.float32)
        self._best_ids = empty(self._num_chunks, torch.int32)
        self._sums = empty(padded(self._num_blocks), torch.float32)
        self._group_maxima = empty(padded(self._num_groups), torch.float32)
        self._counts = torch.zeros(num_rows, dtype=torch.int32, device=device)
        self._masses = torch.zeros(num_rows, dtype=torch.float64, device=device)
        self._least_weights = torch.zeros(num_rows, dtype=torch.float32, device=device)

    def sample(
        self, logits: Tensor, rows: Sequence[SamplingRow], find_masks: FindMasks | None = None
    ) -> list[Sample | None]:
        """Return the next token of each row of logits [S, vocab_size], float32, S <= num_rows.

        As `caravan.model.sampling.sampler.sample`, for rows whose tokens the host has: four bytes a row come back, and
        rows that ask for log-probabilities bring these.
        """
        assert logits.shape == (len(rows), self.vocab_size)
        slots = self._fill_history(rows)
        self.table.stage(rows, slots)
        self.launch(logits, self._own_history)
        token_ids = self.tokens[: len(rows)].tolist()
        masked = [i for i, token_id in enumerate(token_ids) if token_id >= 0 and forbids(rows[i], token_id)]
        if masked:
            assert find_masks is not None, "a row has a grammar"
            self._sample_masked(logits, rows, slots, masked, find_masks(masked))
            token_ids = self.tokens[: len(rows)].tolist()
        samples = [None if token_id < 0 else Sample(token_id) for token_id in token_ids]
        if any(row.params.num_logprobs is not None for row in rows):
            return self._with_logprobs(logits, rows, samples)
        return samples

    def stage(self, rows: Sequence[SamplingRow], slots: Sequence[int]) -> bool:
        """Copy the parameters of rows without a grammar, see RowTable.stage; slots are those of `history`, or -1."""
        assert not any(row.allows for row in rows)
        return self.table.stage(rows, slots)

    def launch(self, logits: Tensor, history: TokenHistory | None = None) -> None:
        """Launch the kernels that find the tokens of staged rows; nothing is read by the host.

        Rows of logits [S, vocab_size] behind the staged ones are skipped.
        """
        counts = self._penalties(history or self.history)
        table, num_rows, size = self.table, self.num_rows, self.vocab_size
        grid = (self._num_chunks, logits.shape[0])
        sampling_kernels.penalize[grid](
            logits, self._scores, counts, table.numbers, table.choices, num_rows, size, CHUNK=CHUNK, **OPTIONS
        )
        sampling_kernels.add_biases[logits.shape[:1]](
            self._scores, table.starts, table.bias_tokens, table.bias_values, size, WIDTH=BIASES, **OPTIONS
        )
        self._launch_draw(logits)

    def record(self) -> None:
        """Launch the kernel that counts the tokens of the staged rows in the history of their slots."""
        picking_kernels.record_tokens[(1,)](
            self._penalties(self.history),
            self.tokens,
            self.table.choices,
            self.num_rows,
            self.vocab_size,
            ROWS=triton.next_power_of_2(self.num_rows),
            **OPTIONS,
        )

    def _penalties(self, history: TokenHistory) -> Tensor:
        """Return the counts of a history; a history without slots is never read, but a kernel wants an address."""
        return history.counts if history.counts.numel() else self.tokens

    def _fill_history(self, rows: Sequence[SamplingRow]) -> list[int]:
        """Count the tokens of rows with penalties, and return the slot of each row, or -1."""
        counted = [index for index, row in enumerate(rows) if needs_history(row.params)]
        if counted and self._own_history is None:
            self._own_history = TokenHistory(self.num_rows, self.vocab_size, self._device)
        for index in counted:
            assert self._own_history is not None
            self._own_history.fill(index, rows[index].prompt_token_ids, rows[index].output_token_ids)
        return [index if needs_history(row.params) else -1 for index, row in enumerate(rows)]

    def _sample_masked(
        self, logits: Tensor, rows: Sequence[SamplingRow], slots: Sequence[int], masked: list[int], masks: Masks
    ) -> None:
        """Sample masked rows again, with another random number, after their masks [rows, bytes]."""
        assert masks.shape[1] * 8 >= self.vocab_size
        self.table.stage(rows, slots, attempt=1)
        is_masked = np.isin(np.arange(self.num_rows), masked)
        place = np.where(is_masked, np.cumsum(is_masked) - 1, -1).astype(np.int32)
        choices = self.table.choices.view(-1, self.num_rows)
        choices[sampling_kernels.MASK.value] = torch.from_numpy(place).to(self._device)
        choices[sampling_kernels.KIND.value] *= torch.from_numpy(is_masked.astype(np.int32)).to(self._device)
        self.launch_masks(logits, torch.from_numpy(np.ascontiguousarray(masks)).to(self._device))

    def launch_masks(self, logits: Tensor, masks: Tensor) -> None:
        """Launch the kernels that sample rows after their masks, uint8 [rows with a mask, bytes]."""
        sampling_kernels.apply_masks[(self._num_chunks, logits.shape[0])](
            logits,
            self._scores,
            masks,
            self.table.choices,
            self.num_rows,
            self.vocab_size,
            masks.shape[1],
            CHUNK=CHUNK,
            **OPTIONS,
        )
        self._launch_draw(logits)

    def _launch_draw(self, logits: Tensor) -> None:
        """Launch the kernels from scores to tokens."""
        table, num_rows, size = self.table, self.num_rows, self.vocab_size
        numbers, choices = table.numbers, table.choices
        rows = logits.shape[:1]
        grid = (self._num_chunks, logits.shape[0])
        chunks = triton.next_power_of_2(self._num_chunks)
        sampling_kernels.find_maxima[grid](
            logits,
            self._scores,
            self._maxima,
            self._best_ids,
            choices,
            num_rows,
            size,
            self._num_chunks,
            CHUNK=CHUNK,
            **OPTIONS,
        )
        sampling_kernels.weigh[grid](
            logits,
            self._scores,
            self._weights,
            self._sums,
            self._group_maxima,
            self._maxima,
            numbers,
            choices,
            num_rows,
            size,
            self._num_chunks,
            self._num_blocks,
            self._num_groups,
            self._sums.stride(0),
            self._group_maxima.stride(0),
            WIDTH=self._width,
            CHUNK=CHUNK,
            CHUNKS=chunks,
            **OPTIONS,
        )
        picking_kernels.collect[rows](
            self._weights,
            self._sums,
            self._group_maxima,
            self._candidates,
            self._counts,
            self._masses,
            self._starts,
            self._lengths,
            numbers,
            choices,
            num_rows,
            size,
            self._num_groups,
            self._sums.stride(0),
            self._group_maxima.stride(0),
            LEAVES=self._num_leaves,
            LEVELS=self._num_leaves.bit_length() - 1,
            **OPTIONS,
        )
        picking_kernels.truncate[rows](
            self._weights,
            self._candidates,
            self._counts,
            self._masses,
            self._least_weights,
            numbers,
            choices,
            num_rows,
            size,
            **OPTIONS,
        )
        picking_kernels.pick[rows](
            self._weights,
            self._sums,
            self._candidates,
            self._counts,
            self._least_weights,
            self._maxima,
            self._best_ids,
            self.tokens,
            numbers,
            choices,
            num_rows,
            size,
            self._num_chunks,
            self._num_blocks,
            self._sums.stride(0),
            WIDTH=self._width,
            CHUNKS=chunks,
            **OPTIONS,
        )

    def _with_logprobs(
        self, logits: Tensor, rows: Sequence[SamplingRow], samples: list[Sample | None]
    ) -> list[Sample | None]:
        """Return samples with the log-probabilities that their rows ask for."""
        wanted = [row.params.num_logprobs for row in rows]
        limits = [None if number is None else min(number, self.vocab_size) for number in wanted]
        width = max(1, *(number or 0 for number in limits))
        logprobs, best, best_ids = (part.tolist() for part in self.launch_logprobs(logits, width))
        return [
            one
            if one is None or limit is None
            else Sample(one.token_id, logprobs[row], tuple(best_ids[row][:limit]), tuple(best[row][:limit]))
            for row, (one, limit) in enumerate(zip(samples, limits, strict=True))
        ]

    def launch_logprobs(self, logits: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor]:
        """Launch the kernels for log-probabilities of staged rows that want them.

        Returns those of the tokens, [S], and of the `width` best tokens, [S, width], with these tokens, [S, width];
        each row has as many as it wants. Nothing is read by the host.
        """
        num_rows = logits.shape[0]

        def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.empty(shape, dtype=dtype, device=self._device)

        top_logits = empty(num_rows, self._num_chunks, width)
        top_ids = empty(num_rows, self._num_chunks, width, dtype=torch.int32)
        sums = empty(num_rows, self._num_chunks, dtype=torch.float64)
        logprobs, best = empty(num_rows), empty(num_rows, width)
        best_ids = empty(num_rows, width, dtype=torch.int32)
        logprob_kernels.find_top[(self._num_chunks, num_rows)](
            logits,
            top_logits,
            top_ids,
            sums,
            self.table.choices,
            self.num_rows,
            self.vocab_size,
            self._num_chunks,
            width,
            CHUNK=CHUNK,
            **OPTIONS,
        )
        logprob_kernels.find_logprobs[(num_rows,)](
            logits,
            self.tokens,
            top_logits,
            top_ids,
            sums,
            logprobs,
            best,
            best_ids,
            self.table.choices,
            self.num_rows,
            self.vocab_size,
            self._num_chunks,
            width,
            CHUNKS=triton.next_power_of_2(self._num_chunks),
            PLACES=triton.next_power_of_2(self._num_chunks * width),
            **OPTIONS,
        )
        return logprobs, best, best_ids
