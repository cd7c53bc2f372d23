"""SpillingBlocks: a block manager whose cached blocks are kept in a spill file, and found there."""

from typing_extensions import override

from caravan.scheduler.block_manager import BlockManager, CachedPrefix
from caravan.scheduler.block_pool import BlockPool
from caravan.scheduler.block_spill import BlockSpill
from caravan.scheduler.draft_tokens import DraftTokens
from caravan.scheduler.events import EventLog
from caravan.scheduler.messages import PrefixMiss, SpillCounts
from caravan.scheduler.prefix_reads import PrefixReads
from caravan.scheduler.scheduler import Scheduler
from caravan.scheduler.sequence import Sequence


class SpillingBlocks(BlockManager):
    """The block tables of sequences, their entries in the prefix cache, and what the file has of them."""

    def __init__(self, pool: BlockPool, block_size: int, spill: BlockSpill) -> None:
        super().__init__(pool, block_size)
        self.spill = spill
        self._reads = PrefixReads(pool, spill, block_size)

    @override
    def finish_reads(self, events: EventLog) -> SpillCounts | None:
        return self._reads.finish(events)

    @override
    def read_prefix(self, sequence: Sequence, prefix: CachedPrefix) -> bool:
        hashes = self._hashes(sequence, sequence.num_reusable_tokens // self.block_size)
        return self._reads.start(sequence, hashes[len(prefix.blocks) :], prefix.blocks)

    @override
    def attach(self, sequence: Sequence, prefix: CachedPrefix) -> PrefixMiss:
        if prefix.blocks:
            self.spill.keep_hits(self._hashes(sequence, len(prefix.blocks)), prefix.blocks[:])
        return super().attach(sequence, prefix)

    @override
    def cache_computed(self, sequence: Sequence) -> None:
        num_cached = sequence.num_cached_blocks
        super().cache_computed(sequence)
        for block_hash in sequence.block_hashes[num_cached : sequence.num_cached_blocks]:
            block = self.pool.lookup(block_hash)
            if block is not None:
                self.spill.keep(block_hash, block)

    @override
    def release(self, sequence: Sequence) -> None:
        super().release(sequence)
        sequence.has_read_prefix = False

    @override
    def poison(self, sequence: Sequence) -> None:
        self.spill.drop(sequence.block_hashes[:])
        super().poison(sequence)


def use_spill(scheduler: Scheduler, spill: BlockSpill) -> None:
    """Let a scheduler without sequences keep its blocks in a spill file."""
    assert not scheduler.has_work, "blocks in use belong to the former manager"
    scheduler.blocks = SpillingBlocks(scheduler.pool, scheduler.config.block_size, spill)
    if scheduler.draft_tokens is not None:
        scheduler.draft_tokens = DraftTokens(scheduler.config, scheduler.blocks)
