"""The block pool: counts, reuse in order of last use, prefixes by hash."""

import pytest

from caravan.scheduler.block_pool import BlockPool, hash_block, root_hash

HASHES = [hash_block(root_hash(""), [i]) for i in range(4)]


def test_a_block_is_free_again_only_when_every_holder_has_released_it() -> None:
    pool = BlockPool(2)
    (block,) = pool.allocate(1)
    pool.cache_block(block, HASHES[0])
    pool.share(block)
    pool.release([block])
    assert not pool.is_free(block)
    pool.release([block])
    assert pool.is_free(block)
    assert pool.num_free == 2
    pool.check()


def test_a_freed_block_keeps_its_prefix_until_it_is_needed() -> None:
    pool = BlockPool(1)
    (block,) = pool.allocate(1)
    pool.cache_block(block, HASHES[0])
    pool.release([block])
    assert pool.lookup(HASHES[0]) == block
    assert pool.num_cached == 1
    pool.allocate(1)
    assert pool.lookup(HASHES[0]) is None
    assert pool.num_cached == 0
    pool.check()


def test_blocks_without_a_prefix_are_reused_before_cached_ones() -> None:
    pool = BlockPool(2)
    cached, plain = pool.allocate(2)
    pool.cache_block(cached, HASHES[0])
    pool.release([cached])
    pool.release([plain])
    assert pool.allocate(1) == [plain]


def test_the_least_recently_freed_prefix_is_evicted_first() -> None:
    pool = BlockPool(3)
    blocks = pool.allocate(3)
    for block, block_hash in zip(blocks, HASHES, strict=False):
        pool.cache_block(block, block_hash)
    for block in (blocks[1], blocks[0], blocks[2]):
        pool.release([block])
    pool.share(blocks[1])  # used again: now the most recent
    pool.release([blocks[1]])
    assert pool.allocate(3) == [blocks[0], blocks[2], blocks[1]]


def test_the_end_of_a_freed_sequence_is_reused_before_its_start() -> None:
    pool = BlockPool(3)
    blocks = pool.allocate(3)
    for block, block_hash in zip(blocks, HASHES, strict=False):
        pool.cache_block(block, block_hash)
    pool.release(blocks)
    assert pool.allocate(3) == blocks[::-1]


def test_the_first_cached_block_of_a_hash_stays() -> None:
    pool = BlockPool(2)
    first, second = pool.allocate(2)
    pool.cache_block(first, HASHES[0])
    pool.cache_block(second, HASHES[0])
    assert pool.lookup(HASHES[0]) == first
    pool.check()


def test_a_forgotten_block_is_not_found() -> None:
    pool = BlockPool(1)
    (block,) = pool.allocate(1)
    pool.cache_block(block, HASHES[0])
    pool.forget(block)
    assert pool.lookup(HASHES[0]) is None
    pool.check()


def test_releasing_a_free_block_is_a_programming_error() -> None:
    with pytest.raises(AssertionError, match="released more often"):
        BlockPool(1).release([0])


def test_the_same_tokens_after_another_prefix_or_salt_have_another_hash() -> None:
    hashes = {
        hash_block(root_hash(""), [1, 2]),
        hash_block(root_hash("a"), [1, 2]),
        hash_block(hash_block(root_hash(""), [0, 0]), [1, 2]),
        hash_block(root_hash(""), [2, 1]),
    }
    assert len(hashes) == 4


def test_the_beginning_of_a_block_can_be_copied_while_the_block_is_held_or_cached() -> None:
    pool = BlockPool(2)
    [block] = pool.allocate(1)
    pool.cache_tail(block, b"tail")
    pool.cache_block(block, HASHES[0])
    assert pool.is_cached(block)
    pool.release([block])
    assert pool.lookup_tail(b"tail") == block
    pool.check()
    pool.allocate(2)
    assert pool.lookup_tail(b"tail") is None
    plain = BlockPool(1)
    [block] = plain.allocate(1)
    plain.cache_tail(block, b"tail")
    plain.release([block])  # not cached: gone
    assert plain.lookup_tail(b"tail") is None
    plain.check()
