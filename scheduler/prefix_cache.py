"""Which blocks of a sequence others may take up: found, awaited, offered, taken back."""

from scheduler.block_pool import BlockPool
from scheduler.sequence import Sequence


def prefix_hits(pool: BlockPool, sequence: Sequence, block_size: int) -> list[int]:
    """Return the published blocks a waiting sequence begins with, noting if the next one is being computed."""
    hits: list[int] = []
    sequence.awaited_hash = None
    for name in sequence.hashes(sequence.num_reusable_tokens // block_size, block_size):
        block = pool.lookup(name)
        if block is None:
            sequence.awaited_hash = name if pool.is_expected(name) else None
            break
        hits.append(block)
    return hits


def expect_full_blocks(pool: BlockPool, sequence: Sequence, block_size: int) -> None:
    """Let others wait for the blocks that a running sequence has the tokens of."""
    num_full = sequence.num_tokens // block_size
    if num_full > sequence.num_expected_blocks:
        names = sequence.hashes(num_full, block_size)
        pool.expect(names[sequence.num_expected_blocks :])
        sequence.num_expected_blocks = num_full


def publish_full_blocks(pool: BlockPool, sequence: Sequence, block_size: int) -> None:
    """Offer the blocks that this step filled to later requests."""
    num_full = sequence.num_computed_tokens // block_size
    if num_full > sequence.num_published_blocks:
        names = sequence.hashes(num_full, block_size)
        for i in range(sequence.num_published_blocks, num_full):
            pool.publish(sequence.block_table[i], names[i])
        pool.expect_no_more(names[sequence.num_published_blocks :])
        sequence.num_published_blocks = num_full


def release_blocks(pool: BlockPool, sequence: Sequence) -> None:
    """Give all blocks of a sequence back; what it was expected to compute will not come."""
    pool.expect_no_more(sequence.block_hashes[sequence.num_published_blocks : sequence.num_expected_blocks])
    pool.release(sequence.block_table)
    sequence.block_table = []
    sequence.num_computed_tokens = 0
    sequence.num_published_blocks = sequence.num_expected_blocks = 0
