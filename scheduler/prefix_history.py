"""PrefixHistory: what was in the prefix cache lately, and why a block is not found there."""

import time
from array import array
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass
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


@dataclass(slots=True)
class _Run:
    """Consecutive blocks that were cached together."""

    cached_at_seconds: float
    parents: Seq[bytes]
    data: bytes  # the tokens of all, 4 bytes each

    def block(self, index: int) -> _Cached:
        size = len(self.data) // len(self.parents)
        return self.cached_at_seconds, self.data[index * size : (index + 1) * size]


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
        self._next: dict[bytes, tuple[_Cached, ...] | _Run] = {}  # by the hash of the block before them
        self._next_before: dict[bytes, tuple[_Cached, ...] | _Run] = {}
        self._first: dict[bytes, bytes] = {}  # content of a first block -> the root hash of the last one
        self._first_before: dict[bytes, bytes] = {}

    def add(self, parents: Seq[bytes], token_ids: Seq[int], *, has_first: bool) -> None:
        """Record that consecutive full blocks with these tokens were cached; `parents` are the hashes before each.

        With `has_first` they begin a text, and the first parent is its root.
        """
        now, data, first = self._clock(), array("I", token_ids).tobytes(), parents[0]
        content = data[: len(data) // len(parents)]
        if has_first:
            if len(self._first) >= MAX_FIRST:
                self._first, self._first_before = {}, self._first
            self._first[content] = first
        self._append(first, (now, content))  # it often is known: a root, or where a text goes on in another way
        if len(parents) > 1:
            self._add_later(_Run(now, parents, data))

    def _add_later(self, run: _Run) -> None:
        """Add the blocks of a run but the first one; usually none of the blocks before them is known."""
        new = run.parents[1:]
        if not (self._next.keys().isdisjoint(new) and self._next_before.keys().isdisjoint(new)):
            for index, parent in enumerate(new, start=1):
                self._append(parent, run.block(index))
            return
        while new:
            self._drop_full_section()
            num_new = MAX_PARENTS - len(self._next)
            self._next.update(dict.fromkeys(new[:num_new], run))
            new = new[num_new:]

    def _append(self, parent: bytes, block: _Cached) -> None:
        self._drop_full_section()
        self._next[parent] = (*self._blocks_after(parent)[1 - MAX_NEXT :], block)

    def _drop_full_section(self) -> None:
        if len(self._next) >= MAX_PARENTS:
            self._next, self._next_before = {}, self._next

    def remove(self, block_hashes: Seq[bytes]) -> None:
        """Record that blocks were removed from the cache: evicted, or not valid."""
        now = self._clock()
        for block_hash in block_hashes:
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
        least = content[: (len(token_ids) + 1) // 2 * array("I").itemsize] if is_first else b""
        others = [
            (_num_equal(other, content), at)
            for at, other in self._blocks_after(parent)
            if other.startswith(least) and other != content
        ]
        if others:
            offset, cached_at = max(others)
            return BlockMiss("differs", offset, now - cached_at)
        root = self._first.get(content) or self._first_before.get(content, parent)
        reason: MissReason = "other key" if is_first and root != parent else "not seen"
        return BlockMiss(reason, 0, now - self._reaches_to_seconds)

    def _blocks_after(self, parent: bytes) -> tuple[_Cached, ...]:
        found = self._next.get(parent) or self._next_before.get(parent, ())
        return (found.block(found.parents.index(parent)),) if isinstance(found, _Run) else found


def _num_equal(content: bytes, other: bytes) -> int:
    """Return how many tokens two different contents have in common from the beginning."""
    differing_bits = int.from_bytes(content, "little") ^ int.from_bytes(other, "little")
    lowest = (differing_bits & -differing_bits).bit_length() - 1
    return lowest // (8 * array("I").itemsize)
