"""SharedTails: the block in which what a group of sequences has in common ends, to be copied by each of them.

A group is the choices of one prompt, or prompts with one beginning. Blocks that the beginning fills are shared as those
of any prefix. The rest of it lies in a block with tokens of the sequence that computed it.
"""

from collections.abc import Sequence as Seq

from caravan.scheduler.block_pool import BlockPool, hash_block, root_hash
from caravan.scheduler.sequence import Sequence


class SharedTails:
    """Finds, caches and holds such blocks. A tail is what the beginning has after its full blocks."""

    def __init__(self, pool: BlockPool, block_size: int) -> None:
        self._pool = pool
        self._block_size = block_size

    def num_shared_tokens(self, sequence: Sequence) -> int:
        """Return how many tokens a sequence shares with its group; choices compute the last one each."""
        return sequence.request.num_shared_tokens or sequence.num_prompt_tokens - 1

    def find(self, sequence: Sequence, num_cached_blocks: int, block_hashes: Seq[bytes]) -> int | None:
        """Return a block with the tail of a waiting sequence, None if there is none or its blocks are not all cached.

        Sets its awaited_hash if the tail is being computed.
        """
        end = self.num_shared_tokens(sequence)
        is_whole = num_cached_blocks == end // self._block_size and sequence.num_reusable_tokens >= end
        tail_hash = self.hash_of(sequence, block_hashes) if is_whole and not sequence.num_output_tokens else None
        if tail_hash is None:
            return None
        tail = self._pool.lookup_tail(tail_hash)
        if tail is None and self._pool.is_pending(tail_hash):
            sequence.awaited_hash = tail_hash
        return tail

    def hash_of(self, sequence: Sequence, block_hashes: Seq[bytes]) -> bytes | None:
        """Return the hash of the tail of a sequence for its group, None if it has none.

        block_hashes: of at least the full blocks before it.
        """
        end, size = self.num_shared_tokens(sequence), self._block_size
        num_full = end // size
        if end == num_full * size:
            return None
        parent = block_hashes[num_full - 1] if num_full else root_hash(sequence.request.cache_salt)
        return hash_block(parent, [sequence.request.group, *sequence.token_ids[num_full * size : end]])

    def hold(self, sequence: Sequence, tail: int) -> None:
        """Begin a sequence after a tail that its next step copies, and hold the tail until then."""
        sequence.num_computed_tokens = self.num_shared_tokens(sequence)
        if self._pool.is_cached(tail):
            self._pool.share(tail)
            sequence.copied_tail = tail

    def mark_pending(self, sequence: Sequence, block_hashes: Seq[bytes]) -> None:
        """Mark the tail of a running sequence that will compute it as pending."""
        if sequence.num_computed_tokens < self._end(sequence) and not sequence.is_tail_pending:
            tail_hash = self.hash_of(sequence, block_hashes)
            if tail_hash is not None:
                self._pool.add_pending([tail_hash])
                sequence.is_tail_pending = True

    def cache_computed(self, sequence: Sequence, block_hashes: Seq[bytes]) -> None:
        """Cache the tail of a sequence if it is pending and computed."""
        self._release(sequence)
        if sequence.is_tail_pending and sequence.num_computed_tokens >= self._end(sequence):
            block = sequence.block_table[self.num_shared_tokens(sequence) // self._block_size]
            self._pool.cache_tail(block, self._remove_pending(sequence, block_hashes))

    def forget(self, sequence: Sequence, block_hashes: Seq[bytes]) -> None:
        """Give back what a sequence holds; its tail is pending no longer."""
        self._release(sequence)
        if sequence.is_tail_pending:
            self._remove_pending(sequence, block_hashes)

    def _end(self, sequence: Sequence) -> int:
        """Return how many tokens are computed when the tail can be copied."""
        return sequence.request.num_shared_tokens or sequence.num_prompt_tokens

    def _release(self, sequence: Sequence) -> None:
        if sequence.copied_tail is not None:
            self._pool.release([sequence.copied_tail])
            sequence.copied_tail = None

    def _remove_pending(self, sequence: Sequence, block_hashes: Seq[bytes]) -> bytes:
        tail_hash = self.hash_of(sequence, block_hashes)
        assert tail_hash is not None, "it was pending"
        self._pool.remove_pending([tail_hash])
        sequence.is_tail_pending = False
        return tail_hash
