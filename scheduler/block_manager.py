"""BlockManager: which blocks each sequence holds, and which prefixes sequences share."""

from collections.abc import Iterable
from typing import NamedTuple

from caravan.scheduler.block_pool import BlockPool, hash_block, num_blocks_for, root_hash
from caravan.scheduler.events import EventLog
from caravan.scheduler.messages import PrefixMiss, SpillCounts
from caravan.scheduler.scored_prefixes import ScoredPrefixes, scoring_hash
from caravan.scheduler.sequence import Sequence
from caravan.scheduler.shared_tails import SharedTails


class CachedPrefix(NamedTuple):
    """The beginning of a waiting sequence whose keys and values are in the pool."""

    blocks: list[int]  # cached blocks, to be shared
    tail: int | None = None  # to be copied: a block of its group with the rest of their common beginning


NOTHING_CACHED = CachedPrefix([])


class BlockManager:
    """Keeps the block tables of sequences and their entries in the prefix cache.

    A full block is pending from the moment a running sequence has its tokens until it is computed; then it is cached.
    Sequences with the same prefix wait for pending blocks and share cached ones.
    """

    def __init__(self, pool: BlockPool, block_size: int) -> None:
        self.pool = pool
        self.block_size = block_size
        self.poisoned: list[int] = []
        self._scored = ScoredPrefixes()
        self._tails = SharedTails(pool, block_size)

    def extend(self, sequence: Sequence, num_tokens: int) -> bool:
        """Allocate the blocks of the next num_tokens tokens; False, with nothing changed, if too few are free."""
        num_tokens += sequence.num_computed_tokens
        num_blocks = num_blocks_for(num_tokens, self.block_size) - len(sequence.block_table)
        if num_blocks <= 0:
            return True
        if num_blocks > self.pool.num_free:
            return False
        sequence.block_table += self.pool.allocate(num_blocks)
        return True

    def can_allocate(
        self, sequence: Sequence, running: Iterable[Sequence], prefix: CachedPrefix = NOTHING_CACHED
    ) -> bool:
        """Return whether all tokens of a waiting sequence fit into the pool with all tokens of the running ones.

        A sequence that joined with less would soon be preempted, and its computed tokens lost.
        """
        held = prefix.blocks if prefix.tail is None else [*prefix.blocks, prefix.tail]
        num_free = self.pool.num_free - sum(self.pool.is_free(block) for block in held)
        num_reserved = sum(
            max(num_blocks_for(one.num_tokens, self.block_size) - len(one.block_table), 0) for one in running
        )
        num_needed = num_blocks_for(sequence.num_tokens, self.block_size) - len(prefix.blocks)
        return num_needed <= num_free - num_reserved

    def find_prefix(self, sequence: Sequence) -> CachedPrefix:
        """Return the cached prefix of a waiting sequence; sets its awaited_hash if the next block is pending."""
        blocks: list[int] = []
        sequence.awaited_hash = None
        if sequence.request.params.num_prompt_logprobs is not None and not sequence.num_scored_tokens:
            hashes = self._hashes(sequence, sequence.num_prompt_tokens // self.block_size)
            sequence.awaited_hash = self._scored.recall(sequence, hashes, self.pool)
        if sequence.awaited_hash is not None:
            return CachedPrefix(blocks)
        for block_hash in self._hashes(sequence, sequence.num_reusable_tokens // self.block_size):
            block = self.pool.lookup(block_hash)
            if block is None:
                sequence.awaited_hash = block_hash if self.pool.is_pending(block_hash) else None
                break
            blocks.append(block)
        if not sequence.request.group or sequence.awaited_hash is not None:
            return CachedPrefix(blocks)
        prefix = CachedPrefix(blocks, self._tails.find(sequence, len(blocks), sequence.block_hashes))
        return prefix if self.can_allocate(sequence, (), prefix) else CachedPrefix(blocks)  # the tail takes a block

    def is_prefix_pending(self, sequence: Sequence) -> bool:
        """Return whether the block that a sequence waits for is still pending."""
        return sequence.awaited_hash is not None and self.pool.is_pending(sequence.awaited_hash)

    def finish_reads(self, events: EventLog) -> SpillCounts | None:
        """Cache what has been read from a spill file (see spilling_blocks.py); here there is none."""

    def read_prefix(self, sequence: Sequence, prefix: CachedPrefix) -> bool:  # noqa: ARG002
        """Start to read what follows a prefix from a spill file; return False if nothing is to be waited for."""
        return False

    def attach(self, sequence: Sequence, prefix: CachedPrefix) -> PrefixMiss:
        """Give a sequence the blocks of its cached prefix; its other full blocks become pending.

        Returns why no more of it was cached.
        """
        for block in prefix.blocks:
            self.pool.share(block)
        sequence.block_table = prefix.blocks
        sequence.num_computed_tokens = len(prefix.blocks) * self.block_size
        if prefix.tail is not None:
            self._tails.hold(sequence, prefix.tail)
        sequence.num_cached_blocks = sequence.num_pending_blocks = len(prefix.blocks)
        self.mark_pending(sequence)
        return self._miss(sequence)

    def mark_pending(self, sequence: Sequence) -> None:
        """Mark the full blocks of a running sequence as pending, and that in which its group's beginning ends."""
        num_full = sequence.num_tokens // self.block_size
        if num_full > sequence.num_pending_blocks:
            hashes = self._hashes(sequence, num_full)
            self.pool.add_pending(self._awaitable(sequence, hashes[sequence.num_pending_blocks :]))
            sequence.num_pending_blocks = num_full
        if sequence.request.group:
            self._tails.mark_pending(sequence, sequence.block_hashes)

    def cache_computed(self, sequence: Sequence) -> None:
        """Cache the pending blocks that are computed completely."""
        num_full = sequence.num_computed_tokens // self.block_size
        if num_full > sequence.num_cached_blocks:
            hashes, start = self._hashes(sequence, num_full), sequence.num_cached_blocks
            cached = [self.pool.cache_block(sequence.block_table[i], hashes[i]) for i in range(start, num_full)]
            new = (
                [(start, num_full)] if all(cached) else [(i, i + 1) for i, is_new in enumerate(cached, start) if is_new]
            )
            for first, end in new:
                self._record(sequence, first, end)
            if sequence.scored:
                for i in range(start, num_full):
                    self._scored.keep(sequence, i, self.block_size)
            self.pool.remove_pending(self._awaitable(sequence, hashes[start:]))
            sequence.num_cached_blocks = num_full
        if sequence.request.group:
            self._tails.cache_computed(sequence, sequence.block_hashes)

    def release(self, sequence: Sequence) -> None:
        """Give back all blocks of a sequence; its pending blocks are pending no longer."""
        if sequence.request.group:
            self._tails.forget(sequence, sequence.block_hashes)
        pending = sequence.block_hashes[sequence.num_cached_blocks : sequence.num_pending_blocks]
        self.pool.remove_pending(self._awaitable(sequence, pending))
        self.pool.release(sequence.block_table)
        sequence.block_table = []
        sequence.num_computed_tokens = sequence.num_draft_computed_tokens = 0
        sequence.num_cached_blocks = sequence.num_pending_blocks = 0

    def poison(self, sequence: Sequence) -> None:
        """Release a sequence whose keys and values may not be finite; none of its blocks stays in the cache."""
        blocks = sequence.block_table
        for block in blocks:
            self.pool.forget(block)
        self.release(sequence)
        self.poisoned += filter(self.pool.is_free, blocks)

    def take_poisoned(self) -> list[int]:
        """Return the blocks poisoned since the last call that no other sequence held; clear them before use."""
        poisoned, self.poisoned = self.poisoned, []
        return poisoned

    def _record(self, sequence: Sequence, start: int, end: int) -> None:
        """Add the blocks from `start` to `end` to the history of cached ones."""
        parents = [self._parent(sequence, start), *sequence.block_hashes[start : end - 1]]
        token_ids = sequence.token_ids[start * self.block_size : end * self.block_size]
        self.pool.history.add(parents, token_ids, has_first=not start)

    def _awaitable(self, sequence: Sequence, block_hashes: list[bytes]) -> list[bytes]:
        """Return the hashes by which others wait for blocks of a sequence: also for their log-probabilities."""
        num_logprobs = sequence.request.params.num_prompt_logprobs
        if num_logprobs is None:
            return block_hashes
        return block_hashes + [scoring_hash(block_hash, num_logprobs) for block_hash in block_hashes]

    def _miss(self, sequence: Sequence) -> PrefixMiss:
        """Return why no more tokens of a sequence than the computed ones were cached when it joined."""
        start, size = sequence.num_computed_tokens, self.block_size
        num_missing = sequence.num_missing_tokens
        if start + size > sequence.num_tokens - 1:  # the last token is always computed
            return PrefixMiss("too short", start, num_tokens=num_missing)
        if start + size > sequence.num_reusable_tokens:
            return PrefixMiss("scored", start, num_tokens=num_missing)
        index = start // size
        content = sequence.token_ids[index * size : (index + 1) * size]
        block_hash = self._hashes(sequence, index + 1)[index]
        miss = self.pool.history.explain(self._parent(sequence, index), block_hash, content, is_first=not index)
        return PrefixMiss(miss.reason, max(start, index * size + miss.offset), miss.seconds, num_missing)

    def _hashes(self, sequence: Sequence, num_blocks: int) -> list[bytes]:
        """Return the hashes of the first num_blocks blocks, which must be full of tokens."""
        hashes, size = sequence.block_hashes, self.block_size
        while len(hashes) < num_blocks:
            start = len(hashes) * size
            parent = self._parent(sequence, len(hashes))
            hashes.append(hash_block(parent, sequence.token_ids[start : start + size]))
        return hashes[:num_blocks]

    def _parent(self, sequence: Sequence, index: int) -> bytes:
        """Return the hash of the block before block `index`, whose hash must be known, or the root of the first one."""
        return sequence.block_hashes[index - 1] if index else root_hash(sequence.request.cache_salt)
