"""BlockPool: reference counts and hashes of the blocks of the KV cache.

Block numbers only; the keys and values are in model/kv_cache.py.
Source: PagedAttention (arXiv:2309.06180), sections 4.2 and 4.3.
"""

import hashlib
import time
from array import array
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence

from caravan.scheduler.prefix_history import PrefixHistory


def num_blocks_for(num_tokens: int, block_size: int) -> int:
    """Return how many blocks num_tokens tokens fill, the last one perhaps in part."""
    return -(-num_tokens // block_size)


def hash_block(parent: bytes, token_ids: Sequence[int]) -> bytes:
    """Return the hash of a full block: SHA-256 over its tokens and the hash of the block before it.

    The chain makes the hash stand for the whole prefix. The first block's parent is root_hash(salt).
    """
    return hashlib.sha256(parent + array("Q", token_ids).tobytes()).digest()


def root_hash(salt: str) -> bytes:
    """Return the parent of a first block; prefixes of different salts never have equal hashes."""
    return hashlib.sha256(salt.encode()).digest()


class BlockPool:
    """Reference counts, a free list in order of last use, and a table from hashes to cached blocks.

    A block is held (count above zero) or free. A free block may stay cached: a request with the same prefix can use it
    until the block is allocated for something else. The least recently freed block is evicted first.

    A hash is pending while a running sequence is computing its block. Other sequences with the same prefix can wait
    for the block instead of computing it again.
    """

    def __init__(self, num_blocks: int, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` returns seconds; the history of cached and removed blocks is timed with it."""
        self.num_blocks = num_blocks
        self.history = PrefixHistory(num_blocks, clock)
        self._ref_counts = [0] * num_blocks
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))  # allocated from the front
        self._hash_of: dict[int, bytes] = {}  # cached block -> its hash
        self._block_of: dict[bytes, int] = {}  # hash -> cached block
        self._num_cached = 0  # free blocks that have a hash
        self._tail_blocks: dict[bytes, int] = {}  # hash of a prompt's end -> the block that begins with it
        self._tail_of: dict[int, bytes] = {}
        self._pending: Counter[bytes] = Counter()  # hash -> running sequences that are computing its block
        self.num_forgotten = 0  # cached blocks that left the cache, since the start
        self.num_evicted = 0  # of them, those that were allocated for something else

    @property
    def num_free(self) -> int:
        """Blocks that no sequence holds, cached ones included."""
        return len(self._free)

    @property
    def num_cached(self) -> int:
        """Free blocks that still hold a cached prefix."""
        return self._num_cached

    def allocate(self, num_blocks: int) -> list[int]:
        """Return free blocks, now held once and no longer cached. There must be as many."""
        blocks = [self._free.popitem(last=False)[0] for _ in range(num_blocks)]
        evicted = [block for block in blocks if block in self._hash_of]
        if evicted:
            self._num_cached -= len(evicted)
            self.num_evicted += len(evicted)
            self._forget(evicted)
        for block in blocks:
            self._ref_counts[block] = 1
        return blocks

    def lookup(self, block_hash: bytes) -> int | None:
        """Return the cached block with this hash, or None."""
        return self._block_of.get(block_hash)

    def is_free(self, block: int) -> bool:
        """Return whether no sequence holds the block."""
        return self._ref_counts[block] == 0

    def is_shared(self, block: int) -> bool:
        """Return whether several sequences hold the block."""
        return self._ref_counts[block] > 1

    def cached_blocks(self) -> list[int]:
        """Return the free blocks that still hold a cached prefix."""
        return [block for block in self._hash_of if self._ref_counts[block] == 0]

    def share(self, block: int) -> None:
        """Hold a cached block once more, taking it off the free list if it is there."""
        assert block in self._hash_of, "only cached blocks are shared"
        if self._ref_counts[block] == 0:
            del self._free[block]
            self._num_cached -= 1
        self._ref_counts[block] += 1

    def cache_block(self, block: int, block_hash: bytes) -> bool:
        """Make a held, completely computed block available to later requests; the first block of a hash stays.

        Returns whether this block is now the one of its hash.
        """
        assert self._ref_counts[block] > 0, "only held blocks become cached"
        if block_hash in self._block_of or block in self._hash_of:
            return False
        self._block_of[block_hash] = block
        self._hash_of[block] = block_hash
        return True

    def is_cached(self, block: int) -> bool:
        """Return whether the block is the one of a hash."""
        return block in self._hash_of

    def cache_tail(self, block: int, tail_hash: bytes) -> None:
        """Make the beginning of a held block available for copying, for as long as the block is held or cached."""
        assert self._ref_counts[block] > 0, "only held blocks become cached"
        if tail_hash not in self._tail_blocks and block not in self._tail_of:
            self._tail_blocks[tail_hash] = block
            self._tail_of[block] = tail_hash

    def lookup_tail(self, tail_hash: bytes) -> int | None:
        """Return a block that begins with the tokens of this hash, or None; one that is not held must be shared."""
        return self._tail_blocks.get(tail_hash)

    def add_pending(self, block_hashes: Sequence[bytes]) -> None:
        """Mark hashes as pending for one more sequence, which will compute their blocks."""
        self._pending.update(block_hashes)

    def remove_pending(self, block_hashes: Sequence[bytes]) -> None:
        """Unmark pending hashes of one sequence, which has computed their blocks or never will."""
        for block_hash in block_hashes:
            assert self._pending[block_hash] > 0, "a hash is removed by a sequence that added it"
            self._pending[block_hash] -= 1
            if not self._pending[block_hash]:
                del self._pending[block_hash]

    def is_pending(self, block_hash: bytes) -> bool:
        """Return whether a running sequence is computing the block of this hash."""
        return block_hash in self._pending

    @property
    def num_pending(self) -> int:
        """Hashes whose blocks running sequences are computing."""
        return len(self._pending)

    def forget(self, block: int) -> None:
        """Remove a block from the cache, if it is there."""
        self._forget_tail(block)
        if block in self._hash_of:
            self._forget([block])

    def _forget(self, blocks: Sequence[int]) -> None:
        """Remove cached blocks from the cache."""
        if self._tail_of:
            for block in blocks:
                self._forget_tail(block)
        block_hashes = [self._hash_of.pop(block) for block in blocks]
        for block_hash in block_hashes:
            del self._block_of[block_hash]
        self.num_forgotten += len(block_hashes)
        self.history.remove(block_hashes)

    def _forget_tail(self, block: int) -> None:
        tail_hash = self._tail_of.pop(block, None)
        if tail_hash is not None:
            del self._tail_blocks[tail_hash]

    def release(self, blocks: Sequence[int]) -> None:
        """Give back one hold on each block of a sequence.

        The last block of a sequence is allocated again first: a prefix is useful without its last block, but not
        without its first.
        """
        for block in reversed(blocks):
            assert self._ref_counts[block] > 0, f"block {block} was released more often than held"
            self._ref_counts[block] -= 1
            if self._ref_counts[block] == 0:
                self._free[block] = None
                if block in self._hash_of:
                    self._num_cached += 1
                else:
                    self._forget_tail(block)
                    self._free.move_to_end(block, last=False)  # not cached: allocated before all cached blocks

    def check(self) -> None:
        """Assert that every count, list and table of the pool agrees with the others."""
        free = set(self._free)
        assert free == {b for b, count in enumerate(self._ref_counts) if count == 0}, "free list and counts differ"
        assert all(count >= 0 for count in self._ref_counts), "negative reference count"
        assert {found: block for block, found in self._hash_of.items()} == self._block_of, "hash tables differ"
        assert {found: block for block, found in self._tail_of.items()} == self._tail_blocks, "tail tables differ"
        assert not (free & self._tail_of.keys()) - self._hash_of.keys(), "a tail is cached in a free block"
        assert self._num_cached == len(free & self._hash_of.keys()), "cached count is wrong"
