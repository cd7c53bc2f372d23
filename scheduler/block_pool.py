"""BlockPool: who holds which block of the KV cache, and which free blocks still hold a useful prefix.

Only numbers live here; the keys and values are in model/kv_cache.py.
Source: PagedAttention (arXiv:2309.06180), sections 4.2 and 4.3.
"""

import hashlib
from array import array
from collections import Counter, OrderedDict
from collections.abc import Sequence


def block_hash(parent: bytes, token_ids: Sequence[int]) -> bytes:
    """Return the name of a full block: SHA-256 over its tokens and the name of the block before it.

    The chain makes the name stand for the whole prefix. The first block's parent is root_hash(salt).
    """
    return hashlib.sha256(parent + array("Q", token_ids).tobytes()).digest()


def root_hash(salt: str) -> bytes:
    """Return the parent of a first block; prefixes of different salts never meet."""
    return hashlib.sha256(salt.encode()).digest()


class BlockPool:
    """Reference counts, a free list in order of last use, and a table from prefix hashes to blocks.

    A block is held (count above zero) or free. A free block may keep its hash: then it can be taken up again by
    a request with the same prefix until the block is needed for something else. The least recently freed goes first.

    A hash is expected from when a running sequence has set out to compute its block until the block is published or
    the sequence is gone. Others with the same prefix can wait for it instead of computing it again.
    """

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._ref_counts = [0] * num_blocks
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))  # next to go first
        self._hash_of: dict[int, bytes] = {}  # block -> its published hash
        self._block_of: dict[bytes, int] = {}  # published hash -> block
        self._num_cached = 0  # free blocks that have a hash
        self._tail_blocks: dict[bytes, int] = {}  # hash of a prompt's end -> the held block that begins with it
        self._tail_of: dict[int, bytes] = {}
        self._expected: Counter[bytes] = Counter()  # hash -> running sequences that will compute its block
        self.num_evicted = 0  # cached blocks that were needed for something else, since the start

    @property
    def num_free(self) -> int:
        """Blocks that nobody holds, cached ones included."""
        return len(self._free)

    @property
    def num_cached(self) -> int:
        """Free blocks that still hold a published prefix."""
        return self._num_cached

    def allocate(self) -> int:
        """Return a free block, now held once; its old content is forgotten. There must be a free one."""
        block, _ = self._free.popitem(last=False)
        if block in self._hash_of:
            self._num_cached -= 1
            self.num_evicted += 1
            self.forget(block)
        self._ref_counts[block] = 1
        return block

    def lookup(self, name: bytes) -> int | None:
        """Return the block published under this hash, or None."""
        return self._block_of.get(name)

    def is_free(self, block: int) -> bool:
        """Return whether nobody holds the block."""
        return self._ref_counts[block] == 0

    def is_shared(self, block: int) -> bool:
        """Return whether several sequences hold the block."""
        return self._ref_counts[block] > 1

    def cached_blocks(self) -> list[int]:
        """Return the free blocks that still hold a published prefix."""
        return [block for block in self._hash_of if self._ref_counts[block] == 0]

    def share(self, block: int) -> None:
        """Hold a published block once more, taking it off the free list if need be."""
        assert block in self._hash_of, "only published blocks are shared"
        if self._ref_counts[block] == 0:
            del self._free[block]
            self._num_cached -= 1
        self._ref_counts[block] += 1

    def publish(self, block: int, name: bytes) -> None:
        """Offer a held, completely computed block to later requests; the first block under a hash stays."""
        assert self._ref_counts[block] > 0, "a block is published by one who holds it"
        if name not in self._block_of and block not in self._hash_of:
            self._block_of[name] = block
            self._hash_of[block] = name

    def publish_tail(self, block: int, name: bytes) -> None:
        """Offer the beginning of a held block for copying, for as long as it is held."""
        assert self._ref_counts[block] > 0, "a block is published by one who holds it"
        if name not in self._tail_blocks and block not in self._tail_of:
            self._tail_blocks[name] = block
            self._tail_of[block] = name

    def lookup_tail(self, name: bytes) -> int | None:
        """Return a block that begins with what has this name, or None."""
        return self._tail_blocks.get(name)

    def expect(self, names: Sequence[bytes]) -> None:
        """Note that a running sequence will compute and publish the blocks of these hashes."""
        self._expected.update(names)

    def expect_no_more(self, names: Sequence[bytes]) -> None:
        """Take back what one sequence was expected to compute: it has done so, or never will."""
        for name in names:
            assert self._expected[name] > 0, "a hash is taken back by one who was expected to compute it"
            self._expected[name] -= 1
            if not self._expected[name]:
                del self._expected[name]

    def is_expected(self, name: bytes) -> bool:
        """Return whether a running sequence is about to compute the block of this hash."""
        return name in self._expected

    @property
    def num_expected(self) -> int:
        """Hashes that running sequences are about to compute."""
        return len(self._expected)

    def forget(self, block: int) -> None:
        """Withdraw a held block from the tables, if it is there."""
        self._forget_tail(block)
        name = self._hash_of.pop(block, None)
        if name is not None:
            del self._block_of[name]

    def _forget_tail(self, block: int) -> None:
        name = self._tail_of.pop(block, None)
        if name is not None:
            del self._tail_blocks[name]

    def release(self, blocks: Sequence[int]) -> None:
        """Give back one hold on each block of a sequence.

        The last block of the sequence is reused first: a prefix is of use without its end, never without its start.
        """
        for block in reversed(blocks):
            assert self._ref_counts[block] > 0, f"block {block} was released more often than held"
            self._ref_counts[block] -= 1
            if self._ref_counts[block] == 0:
                self._forget_tail(block)
                self._free[block] = None
                if block in self._hash_of:
                    self._num_cached += 1
                else:
                    self._free.move_to_end(block, last=False)  # nothing to lose: goes before cached ones

    def check(self) -> None:
        """Assert that every count, list and table of the pool agrees with the others."""
        free = set(self._free)
        assert free == {b for b, count in enumerate(self._ref_counts) if count == 0}, "free list and counts differ"
        assert all(count >= 0 for count in self._ref_counts), "negative reference count"
        assert {name: block for block, name in self._hash_of.items()} == self._block_of, "hash tables differ"
        assert {name: block for block, name in self._tail_of.items()} == self._tail_blocks, "tail tables differ"
        assert not free & self._tail_of.keys(), "a tail is offered that nobody holds"
        assert self._num_cached == len(free & self._hash_of.keys()), "cached count is wrong"
