"""DraftBlocks: which blocks hold the keys and values of the draft model, beside those of the target."""

from caravan.scheduler.block_pool import BlockPool, num_blocks_for
from caravan.scheduler.sequence import Sequence


class DraftBlocks:
    """The full blocks that the draft model has computed, each with the hash of the text that it was computed from.

    A block that was allocated for another text has another hash, so the block manager needs to know nothing of it.
    """

    def __init__(self, pool: BlockPool, block_size: int) -> None:
        self._pool = pool
        self._block_size = block_size
        self._hash_of: dict[int, bytes] = {}
        self._taken: set[int] = set()  # shared blocks that are computed in this step

    def start_step(self) -> None:
        """Begin a step."""
        self._taken.clear()

    def forget(self, block: int) -> None:
        """Record that a block was cleared."""
        self._hash_of.pop(block, None)

    def skip_computed(self, sequence: Sequence) -> None:
        """Set num_draft_computed_tokens to the next token that the draft model must compute.

        Others may have computed blocks since, and a shared block is computed as a whole; see `take`.
        """
        index, offset = divmod(sequence.num_draft_computed_tokens, self._block_size)
        first = index
        for block, block_hash in zip(sequence.block_table[index:], sequence.block_hashes[index:], strict=False):
            if self._hash_of.get(block) != block_hash:
                break
            index += 1
        if index > first or (offset and self._pool.is_shared(sequence.block_table[index])):
            sequence.num_draft_computed_tokens = index * self._block_size

    def take(self, sequence: Sequence, num_tokens: int, num_draft_tokens: int) -> int:
        """Return how many of about num_tokens tokens that are next the draft model may compute in this step.

        Fewer or more than num_tokens are computed without the draft tokens. In a shared block it computes all tokens at
        once, and for one sequence only: kernels that write a token may change the one after it, which another sequence
        may read already.
        """
        if not num_tokens:
            return 0
        start, size = sequence.num_draft_computed_tokens, self._block_size
        end = start + num_tokens
        offset = end % size
        if offset and self._pool.is_shared(sequence.block_table[end // size]):
            end = end - offset if end - offset > start else end - offset + size
        num_blocks = num_blocks_for(end + max(num_draft_tokens - 1, 0), size)
        blocks = sequence.block_table[start // size : num_blocks]
        shared = {block for block in blocks if self._pool.is_shared(block)}
        if shared & self._taken:
            return 0
        self._taken |= shared
        for block in blocks:
            self._hash_of.pop(block, None)
        return end - start

    def mark_computed(self, sequence: Sequence) -> None:
        """Record the full blocks of a sequence that the draft model has computed, for those that will share them."""
        num_full = sequence.num_draft_computed_tokens // self._block_size
        self._hash_of.update(zip(sequence.block_table[:num_full], sequence.block_hashes[:num_full], strict=True))
