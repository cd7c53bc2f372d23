"""KnownPrefixes: which prefixes a replica has cached, as far as the requests that it got tell, and routing by them."""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Protocol, TypeVar

from caravan.scheduler.block_pool import hash_block, root_hash

MAX_EXTRA_REQUESTS = 4  # more than the least busy replica, up to which a known prefix decides


def extend_hashes(hashes: list[bytes], token_ids: Sequence[int], salt: str, block_size: int) -> None:
    """Append the hashes of the full blocks of `token_ids` whose first ones are known; as in the engine's own cache."""
    for start in range(len(hashes) * block_size, len(token_ids) - block_size + 1, block_size):
        parent = hashes[-1] if hashes else root_hash(salt)
        hashes.append(hash_block(parent, token_ids[start : start + block_size]))


class KnownPrefixes:
    """The hashes of the latest blocks that one replica has computed, as many as its KV pool has blocks."""

    def __init__(self, max_blocks: int) -> None:
        self._max_blocks = max_blocks
        self._hashes: OrderedDict[bytes, None] = OrderedDict()  # the latest used last

    def __len__(self) -> int:
        return len(self._hashes)

    def add(self, hashes: Iterable[bytes]) -> None:
        """Record the blocks of a text as the latest used."""
        for block_hash in hashes:
            self._hashes[block_hash] = None
            self._hashes.move_to_end(block_hash)
        while len(self._hashes) > self._max_blocks:
            self._hashes.popitem(last=False)

    def count(self, hashes: Sequence[bytes]) -> int:
        """Return how many of the first blocks of a text are known."""
        for number, block_hash in enumerate(hashes):
            if block_hash not in self._hashes:
                return number
        return len(hashes)


class Candidate(Protocol):
    """A replica as routing sees it."""

    @property
    def num_requests(self) -> int:
        """The number of its unfinished requests."""

    @property
    def known(self) -> KnownPrefixes:
        """The prefixes that it has."""


CandidateT = TypeVar("CandidateT", bound=Candidate)


def choose(candidates: Sequence[CandidateT], hashes: Sequence[bytes]) -> tuple[CandidateT, int]:
    """Return the replica for a prompt with these block hashes, and how many of its first blocks it has.

    It is the one with the longest known prefix among those with at most MAX_EXTRA_REQUESTS more requests than the least
    busy one; of several, the least busy, then the one that knows least. There must be a candidate.
    """
    least = min(one.num_requests for one in candidates)
    near = [one for one in candidates if one.num_requests <= least + MAX_EXTRA_REQUESTS]
    counts = [one.known.count(hashes) for one in near]
    best = min(range(len(near)), key=lambda index: (-counts[index], near[index].num_requests, len(near[index].known)))
    return near[best], counts[best]
