"""Which blocks of a sequence others may take up: found, awaited, offered, taken back."""

from caravan.scheduler.block_pool import BlockPool
from caravan.scheduler.sequence import Sequence


def prefix_hits(pool: BlockPool, sequence: Sequence, block_size: int) -> tuple[list[int], int | None]:
    """Return the published blocks a waiting sequence begins with, and a block to copy behind them.

    The latter ends another choice's prompt: what is in it up to the last token is this prompt's, too. If the next block
    is just being computed, that is noted.
    """
    hits: list[int] = []
    sequence.awaited_hash = None
    for name in sequence.hashes(sequence.num_reusable_tokens // block_size, block_size):
        block = pool.lookup(name)
        if block is None:
            sequence.awaited_hash = name if pool.is_expected(name) else None
            return hits, None
        hits.append(block)
    tail_name = sequence.tail_hash(block_size)
    if tail_name is None or sequence.num_reusable_tokens != sequence.num_prompt_tokens - 1:
        return hits, None
    tail = pool.lookup_tail(tail_name)
    if tail is None and pool.is_expected(tail_name):
        sequence.awaited_hash = tail_name
    return hits, tail


def expect_full_blocks(pool: BlockPool, sequence: Sequence, block_size: int) -> None:
    """Let others wait for the blocks that a running sequence has the tokens of."""
    num_full = sequence.num_tokens // block_size
    if num_full > sequence.num_expected_blocks:
        names = sequence.hashes(num_full, block_size)
        pool.expect(names[sequence.num_expected_blocks :])
        sequence.num_expected_blocks = num_full
    tail = sequence.tail_hash(block_size) if sequence.num_computed_tokens < sequence.num_prompt_tokens else None
    if tail is not None and not sequence.is_tail_expected:
        pool.expect([tail])
        sequence.is_tail_expected = True


def publish_full_blocks(pool: BlockPool, sequence: Sequence, block_size: int) -> None:
    """Offer the blocks that this step filled to later requests."""
    num_full = sequence.num_computed_tokens // block_size
    if num_full > sequence.num_published_blocks:
        names = sequence.hashes(num_full, block_size)
        for i in range(sequence.num_published_blocks, num_full):
            pool.publish(sequence.block_table[i], names[i])
        pool.expect_no_more(names[sequence.num_published_blocks :])
        sequence.num_published_blocks = num_full
    if sequence.is_tail_expected and sequence.num_computed_tokens >= sequence.num_prompt_tokens:
        block = sequence.block_table[(sequence.num_prompt_tokens - 1) // block_size]
        pool.publish_tail(block, _end_tail(pool, sequence, block_size))


def _end_tail(pool: BlockPool, sequence: Sequence, block_size: int) -> bytes:
    """Return the name of what the others of its group waited for: they need not any more."""
    name = sequence.tail_hash(block_size)
    assert name is not None, "it was expected"
    pool.expect_no_more([name])
    sequence.is_tail_expected = False
    return name


def release_blocks(pool: BlockPool, sequence: Sequence, block_size: int) -> None:
    """Give all blocks of a sequence back; what it was expected to compute will not come."""
    if sequence.is_tail_expected:
        _end_tail(pool, sequence, block_size)
    pool.expect_no_more(sequence.block_hashes[sequence.num_published_blocks : sequence.num_expected_blocks])
    pool.release(sequence.block_table)
    sequence.block_table = []
    sequence.num_computed_tokens = 0
    sequence.num_published_blocks = sequence.num_expected_blocks = 0
