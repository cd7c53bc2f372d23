"""PrefixReads: waiting sequences whose prefixes are read from the spill file instead of being computed.

A block that is read is pending meanwhile, as one that a running sequence computes: all sequences with that prefix wait
for it, and compute it if it is not found.
"""

import time
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import TYPE_CHECKING

from caravan.scheduler.block_pool import BlockPool
from caravan.scheduler.events import EventLog
from caravan.scheduler.messages import SpillCounts
from caravan.scheduler.sequence import Sequence

if TYPE_CHECKING:
    from caravan.scheduler.block_spill import BlockRead, BlockSpill

STUCK_SECONDS = 2.0  # without a block, after which nobody waits for a read any more


@dataclass(eq=False)
class _Pending:
    """A read that the thread has not ended, for a sequence."""

    sequence: Sequence
    read: "BlockRead"
    is_stuck: bool = False  # it was given up


class PrefixReads:
    """The reads of an engine."""

    def __init__(
        self,
        pool: BlockPool,
        spill: "BlockSpill",
        block_size: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`clock` returns seconds, as time.monotonic does."""
        self._spill = spill
        self._pool = pool
        self._block_size = block_size
        self._clock = clock
        self._pending: list[_Pending] = []

    def start(self, sequence: Sequence, block_hashes: Seq[bytes], cached_blocks: Seq[int]) -> bool:
        """Start to read the blocks with these hashes, which follow cached_blocks; return False if there are none.

        A sequence is read for once, until it is preempted. Only as many blocks as are free may be missing. Sets its
        awaited_hash.
        """
        if sequence.has_read_prefix or any(pending.is_stuck for pending in self._pending):
            return False
        sequence.has_read_prefix = True
        wanted: list[bytes] = []
        for block_hash in block_hashes:
            if self._pool.lookup(block_hash) is not None:
                continue  # it was not evicted, other than one before it
            if self._pool.is_pending(block_hash) or not self._spill.has(block_hash):
                break
            wanted.append(block_hash)
        if not wanted:
            return False
        for block in cached_blocks:  # so that none of them is allocated
            self._pool.share(block)
        read = self._spill.read(wanted, self._pool.allocate(len(wanted)))
        self._pool.release(cached_blocks)
        self._pool.add_pending(wanted)
        self._pending.append(_Pending(sequence, read))
        sequence.awaited_hash = wanted[-1]
        return True

    def finish(self, events: EventLog) -> SpillCounts:
        """Cache the blocks that were found since the last call; return what happened to the file meanwhile."""
        finished = self._spill.take_finished() if self._pending else []
        for pending in [one for one in self._pending if one.read in finished]:
            self._pending.remove(pending)
            if not pending.is_stuck:
                self._finish(pending, events)
        for pending in self._pending:
            if not pending.is_stuck and self._is_late(pending.read) and self._spill.give_up(pending.read):
                pending.is_stuck = True  # until the disk answers, nothing else is read
                self._finish(pending, events)
        return self._spill.take_counts()

    def _is_late(self, read: "BlockRead") -> bool:
        """Return whether the thread has done nothing for long; the read may wait behind others."""
        return self._clock() - max(read.asked_at_seconds, self._spill.progressed_at_seconds) > STUCK_SECONDS

    def _finish(self, pending: _Pending, events: EventLog) -> None:
        read = pending.read
        self._pool.remove_pending(read.block_hashes)
        for block_hash, block in zip(read.block_hashes, read.blocks[: len(read.found)], strict=False):
            self._pool.cache_block(block, block_hash)
        self._pool.release(read.blocks)
        if read.found:
            events.read(pending.sequence, len(read.found) * self._block_size)
