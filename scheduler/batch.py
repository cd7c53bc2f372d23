"""BatchBuilder: a plan as the tensors of one step."""

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from caravan.model.forward_batch import ForwardBatch
from caravan.model.sampling.sampler import SamplingRow, needs_history
from caravan.scheduler.sequence import ScheduledSequence, Sequence
from caravan.scheduler.token_mask import ForcedToken, TokenMask


@dataclass
class _Row:
    """The row of a sequence's block table, and how much of it is copied."""

    index: int
    block_table: list[int] | None = None  # the copied list; after a preemption a sequence has a new one
    num_copied: int = 0


class Span(NamedTuple):
    """Tokens of a sequence that one run computes, from a position on; its blocks have room for them."""

    sequence: Sequence
    start: int
    token_ids: Seq[int]


class BatchBuilder:
    """Builds the batches of consecutive steps. Block tables are kept, so that only new blocks are copied.

    A sequence keeps its row as long as every step computes some of its tokens.
    """

    def __init__(self, max_num_seqs: int, max_num_blocks: int, block_size: int, device: torch.device) -> None:
        self._block_size = block_size
        self._device = device
        self._tables = np.zeros((max_num_seqs, max_num_blocks), dtype=np.int32)
        self._rows: dict[Sequence, _Row] = {}
        self._free_rows = list(range(max_num_seqs))

    def build(self, plan: list[ScheduledSequence]) -> ForwardBatch:
        """Return the batch of a plan that is not empty: the tokens of all its sequences end to end, in its order."""
        spans = [Span(s.sequence, s.sequence.num_computed_tokens, s.token_ids) for s in plan]
        wanted_rows = [
            row
            for s, end in zip(plan, accumulate(len(span.token_ids) for span in spans), strict=True)
            for row in (*s.scored_rows(end), *range(end - s.num_logits, end))
        ]
        return self.build_spans(spans, wanted_rows)

    def build_spans(self, spans: Seq[Span], wanted_rows: Seq[int]) -> ForwardBatch:
        """Return the batch of spans end to end, one for each sequence, with the rows whose hidden states are wanted."""
        block_tables = self._block_tables([span.sequence for span in spans])
        starts = np.array([span.start for span in spans])
        lengths = np.array([len(span.token_ids) for span in spans])
        query_start_loc = np.zeros(len(spans) + 1, dtype=np.int64)
        np.cumsum(lengths, out=query_start_loc[1:])
        owners = np.repeat(np.arange(len(spans)), lengths)  # [T], the index of each token's span
        positions = np.arange(len(owners)) + (starts - query_start_loc[:-1])[owners]

        def tensor(numbers: NDArray[np.int32] | NDArray[np.int64]) -> torch.Tensor:
            return torch.from_numpy(numbers).to(self._device)

        return ForwardBatch(
            token_ids=tensor(np.array([token for span in spans for token in span.token_ids])),  # [T]
            positions=tensor(positions),  # [T]
            slot_mapping=tensor(slots(block_tables, owners, positions, self._block_size)),  # [T]
            query_start_loc=tensor(query_start_loc.astype(np.int32)),  # [B + 1]
            seq_lens=tensor((starts + lengths).astype(np.int32)),  # [B]
            block_tables=tensor(block_tables),  # [B, width]
            wanted_rows=tensor(np.array(wanted_rows, dtype=np.int64)),  # [S]
        )

    def _block_tables(self, sequences: Seq[Sequence]) -> NDArray[np.int32]:
        """Return the block table of each sequence, [B, width of the longest], padded with zeros."""
        rows = {sequence: self._rows.pop(sequence) for sequence in sequences if sequence in self._rows}
        self._free_rows += [row.index for row in self._rows.values()]
        self._rows = rows
        indices = []
        for sequence in sequences:
            row = rows.get(sequence) or rows.setdefault(sequence, _Row(self._free_rows.pop()))
            indices.append(row.index)
            blocks = sequence.block_table
            if row.block_table is not blocks:
                row.block_table, row.num_copied = blocks, 0
                self._tables[row.index] = 0
            if row.num_copied < len(blocks):
                self._tables[row.index, row.num_copied : len(blocks)] = blocks[row.num_copied :]
                row.num_copied = len(blocks)
        width = max(len(sequence.block_table) for sequence in sequences)
        return np.ascontiguousarray(self._tables[indices, :width])


def slots(
    block_tables: NDArray[np.int32], owners: NDArray[np.int64], positions: NDArray[np.int64], block_size: int
) -> NDArray[np.int64]:
    """Return the cache slot of each token [T], in tokens: token t is at positions[t] of the table of row owners[t].

    A slot is block * block_size + offset. Positions must lie inside the table.
    Source: PagedAttention (arXiv:2309.06180), section 4.2.
    """
    return block_tables[owners, positions // block_size].astype(np.int64) * block_size + positions % block_size


def sampling_rows(plan: list[ScheduledSequence], masks: Seq[TokenMask | None] = ()) -> list[SamplingRow]:
    """Return the sampler's description of each row of logits, with the text so far where it is needed.

    `masks` are those of all rows; without them no row has one.
    """
    rows: list[SamplingRow] = []
    for scheduled in plan:
        sequence, params = scheduled.sequence, scheduled.sequence.request.params
        for index in range(scheduled.num_logits):
            position = sequence.num_output_tokens + index
            mask = masks[len(rows)] if masks else None
            allows = None if mask is None else mask.allows
            if isinstance(mask, ForcedToken):
                rows.append(SamplingRow(mask.params_for(params), position, allows=allows))
            elif needs_history(params):
                output = [*sequence.output_token_ids, *scheduled.draft_token_ids[:index]]
                rows.append(SamplingRow(params, position, sequence.request.prompt_token_ids, output, allows))
            else:
                rows.append(SamplingRow(params, position, allows=allows))
    return rows
