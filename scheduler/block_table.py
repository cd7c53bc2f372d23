"""Block tables: how many blocks a sequence needs, and getting them from the pool."""

from collections.abc import Iterable

from caravan.scheduler.block_pool import BlockPool
from caravan.scheduler.sequence import Sequence


def extend_block_table(pool: BlockPool, sequence: Sequence, num_tokens: int, block_size: int) -> bool:
    """Allocate the blocks of the next num_tokens tokens; False, with nothing changed, if they are not free."""
    num_blocks = num_blocks_for(sequence.num_computed_tokens + num_tokens, block_size) - len(sequence.block_table)
    if num_blocks > pool.num_free:
        return False
    sequence.block_table.extend(pool.allocate() for _ in range(num_blocks))
    return True


def has_room(
    pool: BlockPool, sequence: Sequence, hits: list[int], running: Iterable[Sequence], block_size: int
) -> bool:
    """Whether all its tokens would fit now, with these cached blocks, beside all tokens of those that run.

    Half a prompt in a full pool is work lost.
    """
    num_free = pool.num_free - sum(pool.is_free(block) for block in hits)
    num_promised = sum(max(num_blocks_for(one.num_tokens, block_size) - len(one.block_table), 0) for one in running)
    return num_blocks_for(sequence.num_tokens, block_size) - len(hits) <= num_free - num_promised


def num_blocks_for(num_tokens: int, block_size: int) -> int:
    """Return how many blocks so many tokens fill, the last one perhaps in part."""
    return -(-num_tokens // block_size)
