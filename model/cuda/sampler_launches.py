"""SamplerKernels: the sampler's buffers on a device, and the launches of its kernels."""

import math

import torch
import triton
from torch import Tensor

from caravan.model.cuda import logprob_kernels, picking_kernels, sampling_kernels
from caravan.model.cuda.row_table import RowTable, summation_tree
from caravan.model.cuda.token_history import TokenHistory
from caravan.model.sampling.sampler import BLOCK_WIDTH

CHUNK = 4096  # tokens of a row that one program reads
BIASES = 128  # biases that one program adds at once
SEARCH_WARPS = 8  # of the program that finds the least weight of a row
OPTIONS = {"num_warps": 4, "num_stages": 1, "enable_fp_fusion": False}  # of every kernel


def padded(count: int) -> int:
    """Return the multiple of 16 that follows, so that every row of a tensor can be read 16 bytes at once."""
    return -(-count // 16) * 16


class SamplerKernels:
    """Buffers for up to num_rows rows of a vocabulary, and kernels over them.

    Rows are staged in `table`. A launch has the same kernels whatever the rows want, and nothing is read by the host.
    """

    def __init__(self, num_rows: int, vocab_size: int, device: torch.device, *, num_slots: int = 0) -> None:
        """Allocate 12 bytes for each row and token, and 4 for each slot of `history` and token."""
        num_rows = padded(num_rows)  # columns of the table then start at multiples of 16 bytes
        self.num_rows = num_rows
        self.vocab_size = vocab_size
        self.table = RowTable(num_rows, vocab_size, device)
        self.tokens = torch.full((num_rows,), -1, dtype=torch.int32, device=device)  # -1: the row has no sound logit
        self.history = TokenHistory(num_slots, vocab_size, device)
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

    def launch(self, logits: Tensor) -> None:
        """Launch the kernels that find the tokens of staged rows.

        Rows of logits [S, vocab_size] behind the staged ones are skipped.
        """
        table, num_rows, size = self.table, self.num_rows, self.vocab_size
        grid = (self._num_chunks, logits.shape[0])
        sampling_kernels.penalize[grid](
            logits,
            self._scores,
            self._history_counts(),
            table.numbers,
            table.choices,
            num_rows,
            size,
            CHUNK=CHUNK,
            **OPTIONS,
        )
        sampling_kernels.add_biases[logits.shape[:1]](
            self._scores, table.starts, table.bias_tokens, table.bias_values, size, WIDTH=BIASES, **OPTIONS
        )
        self._launch_draw(logits)

    def record(self) -> None:
        """Launch the kernel that counts the tokens of the staged rows in the history of their slots."""
        picking_kernels.record_tokens[(1,)](
            self._history_counts(),
            self.tokens,
            self.table.choices,
            self.num_rows,
            self.vocab_size,
            ROWS=triton.next_power_of_2(self.num_rows),
            **OPTIONS,
        )

    def _history_counts(self) -> Tensor:
        """Return the counts of the history; without slots it is never read, but a kernel wants an address."""
        return self.history.counts if self.history.counts.numel() else self.tokens

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
            **OPTIONS | {"num_warps": SEARCH_WARPS},
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

    def launch_logprobs(self, logits: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor]:
        """Launch the kernels for log-probabilities of staged rows that want them.

        Returns those of the tokens, [S], and of the `width` best tokens, [S, width], with these tokens, [S, width];
        each row has as many as it wants.
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
