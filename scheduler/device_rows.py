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
        before = self._rows
        now: dict[Sequence, _Row | None] = {}
        for scheduled in plan:
            now[scheduled.sequence] = before.pop(scheduled.sequence, None)
        self._free += [row.index for row in before.values()]
        self._rows = {}
        updates = RowUpdates([], [], [])
        for sequence, row in now.items():
            if row is None:
                row = _Row(self._free.pop())
            self._rows[sequence] = row
            updates.rows.append(row.index)
            blocks = sequence.block_table
            if row.block_table is not blocks:
                row.block_table, row.num_copied = blocks, 0
            if row.num_copied < len(blocks):
                start = row.index * self._max_num_blocks
                updates.places.extend(range(start + row.num_copied, start + len(blocks)))
                updates.blocks.extend(blocks[row.num_copied :])
                row.num_copied = len(blocks)
        return updates
