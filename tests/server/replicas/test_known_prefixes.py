"""KnownPrefixes and the routing rule."""

from dataclasses import dataclass, field

from caravan.scheduler.block_pool import hash_block, root_hash
from caravan.server.replicas.known_prefixes import MAX_EXTRA_REQUESTS, KnownPrefixes, choose, extend_hashes


@dataclass
class FakeCandidate:
    num_requests: int = 0
    known: KnownPrefixes = field(default_factory=lambda: KnownPrefixes(100))


def hashes_of(*token_ids: int, salt: str = "") -> list[bytes]:
    hashes: list[bytes] = []
    extend_hashes(hashes, token_ids, salt, 2)
    return hashes


def test_hashes_are_those_of_the_engine_and_of_full_blocks_only() -> None:
    first = hash_block(root_hash("salt"), [1, 2])
    assert hashes_of(1, 2, 3, 4, 5, salt="salt") == [first, hash_block(first, [3, 4])]
    assert hashes_of(1) == []
    assert hashes_of(1, 2, salt="a") != hashes_of(1, 2, salt="b")


def test_hashes_are_extended_without_computing_the_first_ones_again() -> None:
    hashes = hashes_of(1, 2, 3, 4)
    extend_hashes(hashes, [0, 0, 0, 0, 5, 6], "", 2)
    assert hashes == hashes_of(1, 2, 3, 4, 5, 6)


def test_the_least_recently_used_blocks_are_forgotten() -> None:
    known = KnownPrefixes(3)
    known.add(hashes_of(1, 2, 3, 4))
    known.add(hashes_of(5, 6))
    known.add(hashes_of(1, 2))
    known.add(hashes_of(7, 8))
    assert len(known) == 3
    assert known.count(hashes_of(1, 2, 3, 4)) == 1
    assert known.count(hashes_of(5, 6)) == 1


def test_the_longest_known_prefix_decides_among_replicas_that_are_not_much_busier() -> None:
    idle, busy, full = FakeCandidate(0), FakeCandidate(MAX_EXTRA_REQUESTS), FakeCandidate(MAX_EXTRA_REQUESTS + 1)
    busy.known.add(hashes_of(1, 2))
    full.known.add(hashes_of(1, 2, 3, 4))
    assert choose([idle, busy, full], hashes_of(1, 2, 3, 4)) == (busy, 1)
    assert choose([idle, busy, full], hashes_of(9, 9)) == (idle, 0)


def test_of_equal_replicas_the_one_that_knows_least_is_chosen() -> None:
    one, two = FakeCandidate(), FakeCandidate()
    one.known.add(hashes_of(1, 2))
    assert choose([one, two], hashes_of(9, 9))[0] is two
