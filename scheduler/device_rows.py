"""DeviceRows: which row of the device's tables each sequence has, and which blocks are to be written there."""

from dataclasses import dataclass
from typing import NamedTuple

from caravan.scheduler.sequence import ScheduledSequence, Sequence


@dataclass
class _Row:
    """The row of a sequence, and how much of its block table is on the device."""

    index: int
    block_table: list[int] | None = None  # the copied list; after a preemption a sequence has a new one
    num_copied: int = 0


class RowUpdates(NamedTuple):
    """The rows of a step's sequences, and the entries of block tables that it writes first."""

    rows: list[int]  # of each sequence of the plan
    places: list[int]  # in the tables end to end: row * max_num_blocks + index of the block
    blocks: list[int]  # of each place


class DeviceRows:
    """Assigns rows to the sequences of consecutive steps. A sequence keeps its row as long as no step leaves it out.

    A row that is free can be given away at once, even if a launched step still uses it: steps run in order.
    """

    def __init__(self, max_num_seqs: int, max_num_blocks: int) -> None:
        self._max_num_blocks = max_num_blocks
        self._rows: dict[Sequence, _Row] = {}
        self._free = list(range(max_num_seqs))

    def assign(self, plan: list[ScheduledSequence]) -> RowUpdates:
        """Return the rows of a plan's sequences; whatever changed in their block tables counts as written then."""
        sequences = [scheduled.sequence for scheduled in plan]
        if [*self._rows] != sequences:
            self._assign_rows(sequences)
        rows: list[int] = []
        updates = RowUpdates(rows, [], [])
        for sequence, row in self._rows.items():
            rows.append(row.index)
            if row.block_table is not sequence.block_table or row.num_copied < len(sequence.block_table):
                self._update(sequence, row, updates)
        return updates

    def _assign_rows(self, sequences: list[Sequence]) -> None:
        """Give the rows of sequences that are left out to new ones."""
        before = self._rows
        kept = {sequence: before.pop(sequence, None) for sequence in sequences}
        self._free += [row.index for row in before.values()]
        self._rows = {sequence: row or _Row(self._free.pop()) for sequence, row in kept.items()}

    def _update(self, sequence: Sequence, row: _Row, updates: RowUpdates) -> None:
        """Add the blocks of a sequence that are not on the device."""
        blocks = sequence.block_table
        if row.block_table is not blocks:
            row.block_table, row.num_copied = blocks, 0
        start = row.index * self._max_num_blocks
        updates.places.extend(range(start + row.num_copied, start + len(blocks)))
        updates.blocks.extend(blocks[row.num_copied :])
        row.num_copied = len(blocks)
