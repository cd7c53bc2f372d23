"""PrefixHistory: what was in the prefix cache lately, and why a block is not found there."""

import time
from array import array
from collections.abc import Callable
from collections.abc import Sequence as Seq
from typing import Literal, NamedTuple

MAX_REMOVED = 16_384  # hashes of removed blocks in a section; a smaller pool has sections of its own size
MAX_PARENTS = 2048  # blocks whose next blocks are kept, in a section
MAX_NEXT = 8  # next blocks of one block
MAX_FIRST = 1024  # contents of first blocks in a section

MissReason = Literal["evicted", "differs", "other key", "not seen", "scored", "too short"]


class BlockMiss(NamedTuple):
    """Why a block is not in the cache."""

    reason: MissReason
    offset: int  # tokens of the block before the first that differs; 0 unless the reason is "differs"
    seconds: float  # since the block was removed, or the similar one cached; else how far the history reaches back


_Cached = tuple[float, bytes]  # when a block was cached in seconds; its tokens, 4 bytes each


class PrefixHistory:
    """The blocks that were cached last, by the hashes of the blocks before them, and the hashes of those removed last.

    Its size is bounded: each table has two sections, and the older one is dropped as a whole when the other is full.
    At most 2 * MAX_REMOVED hashes are kept, 2 * MAX_FIRST first blocks, and MAX_NEXT blocks after each of
    2 * MAX_PARENTS. All hashes are known that were removed since the older section was full: for as long, "not seen"
    means that a block was not in the cache.
    """

    def __init__(self, num_blocks: int, clock: Callable[[], float] = time.monotonic) -> None:
        """`num_blocks` is the size of the pool; `clock` returns seconds."""
        self._clock = clock
        self._max_removed = min(num_blocks, MAX_REMOVED)
        self._removed: dict[bytes, float] = {}  # hash -> when its block was removed
        self._removed_before: dict[bytes, float] = {}  # the older section
        self._section_began_at_seconds = self._reaches_to_seconds = clock()
        self._next: dict[bytes, tuple[_Cached, ...]] = {}  # by the hash of the block before them
        self._next_before: dict[bytes, tuple[_Cached, ...]] = {}
        self._first: dict[bytes, bytes] = {}  # content of a first block -> the root hash of the last one
        self._first_before: dict[bytes, bytes] = {}

    def add(self, parent: bytes, token_ids: Seq[int], *, is_first: bool) -> None:
        """Record that the block after `parent` with these tokens was cached; a first block's parent is its root."""
        content = array("I", token_ids).tobytes()
        if len(self._next) >= MAX_PARENTS:
            self._next, self._next_before = {}, self._next
        others = self._next.get(parent) or self._next_before.get(parent, ())
        self._next[parent] = (*others[1 - MAX_NEXT :], (self._clock(), content))
        if is_first:
            if len(self._first) >= MAX_FIRST:
                self._first, self._first_before = {}, self._first
            self._first[content] = parent

    def remove(self, block_hash: bytes) -> None:
        """Record that a block was removed from the cache: evicted, or not valid."""
        now = self._clock()
        if len(self._removed) >= self._max_removed:
            self._removed, self._removed_before = {}, self._removed
            self._reaches_to_seconds, self._section_began_at_seconds = self._section_began_at_seconds, now
        self._removed[block_hash] = now

    def explain(self, parent: bytes, block_hash: bytes, token_ids: Seq[int], *, is_first: bool) -> BlockMiss:
        """Return why the block after `parent` with these tokens is not in the cache.

        First blocks are compared if the same half begins them: the few tokens with which a model or its template begins
        every prompt are not a shared prefix. "other key" is for the operator only; see SECURITY.md.
        """
        now = self._clock()
        removed_at = self._removed.get(block_hash, self._removed_before.get(block_hash))
        if removed_at is not None:
            return BlockMiss("evicted", 0, now - removed_at)
        content = array("I", token_ids).tobytes()
        nexts = self._next.get(parent) or self._next_before.get(parent, ())
        others = [(_num_equal(other, content), at) for at, other in nexts if other != content]
        offset, cached_at = max(others, default=(0, now))
        if others and (not is_first or 2 * offset >= len(token_ids)):
            return BlockMiss("differs", offset, now - cached_at)
        root = self._first.get(content) or self._first_before.get(content, parent)
        reason: MissReason = "other key" if is_first and root != parent else "not seen"
        return BlockMiss(reason, 0, now - self._reaches_to_seconds)


def _num_equal(content: bytes, other: bytes) -> int:
    """Return how many tokens two different contents have in common from the beginning."""
    pairs = zip(array("I", content), array("I", other), strict=True)
    return next(index for index, (one, two) in enumerate(pairs) if one != two)
