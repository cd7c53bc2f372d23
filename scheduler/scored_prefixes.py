"""ScoredPrefixes: log-probabilities of prompt tokens beside the prefix cache, for prompts that begin alike.

Evaluations score many continuations of one context. The hash of a block stands for the whole text up to its end, and so
for the log-probability of each of its tokens.
"""

from array import array
from collections import OrderedDict
from collections.abc import Sequence as Seq
from typing import NamedTuple

from caravan.model.sampling.sample import Sample
from caravan.scheduler.block_pool import BlockPool
from caravan.scheduler.messages import TokenLogprobs
from caravan.scheduler.sequence import Sequence

MAX_BYTES = 16 * 2**20  # of all blocks together
_OVERHEAD_BYTES = 512  # of the objects of one block


class _Block(NamedTuple):
    """The log-probabilities of the tokens of one block; float32, as they were computed."""

    logprobs: "array[float]"
    top_ids: "array[int]"  # of each token as many
    top_logprobs: "array[float]"

    @property
    def num_bytes(self) -> int:
        return 4 * (len(self.logprobs) + len(self.top_ids) + len(self.top_logprobs)) + _OVERHEAD_BYTES


class ScoredPrefixes:
    """The log-probabilities of blocks by block hash and number of alternatives; the least recently used leave first."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self.num_bytes = 0
        self._max_bytes = max_bytes
        self._blocks: OrderedDict[tuple[bytes, int], _Block] = OrderedDict()

    def add(self, block_hash: bytes, num_logprobs: int, samples: Seq[Sample]) -> None:
        """Keep the log-probabilities of the tokens of a block; those of a first block begin with its second token."""
        block = _Block(
            array("f", [sample.logprob or 0.0 for sample in samples]),
            array("i", [token_id for sample in samples for token_id in sample.top_token_ids]),
            array("f", [logprob for sample in samples for logprob in sample.top_logprobs]),
        )
        if (block_hash, num_logprobs) in self._blocks or block.num_bytes > self._max_bytes:
            return
        self._blocks[block_hash, num_logprobs] = block
        self.num_bytes += block.num_bytes
        while self.num_bytes > self._max_bytes:
            self.num_bytes -= self._blocks.popitem(last=False)[1].num_bytes

    def find(self, block_hash: bytes, num_logprobs: int) -> list[TokenLogprobs] | None:
        """Return what was added, with exactly this number of alternatives, or None."""
        block = self._blocks.get((block_hash, num_logprobs))
        if block is None:
            return None
        self._blocks.move_to_end((block_hash, num_logprobs))
        width = len(block.top_ids) // max(len(block.logprobs), 1)
        return [
            TokenLogprobs(
                logprob=logprob,
                top_token_ids=block.top_ids[width * index : width * (index + 1)].tolist(),
                top_logprobs=block.top_logprobs[width * index : width * (index + 1)].tolist(),
            )
            for index, logprob in enumerate(block.logprobs)
        ]

    def recall(self, sequence: Sequence, block_hashes: Seq[bytes], pool: BlockPool) -> bytes | None:
        """Give a sequence what is known of its prompt; return the hash that it should wait for instead, if any.

        block_hashes: of the blocks that the prompt fills. Of a known prefix of N tokens the last position is scored
        again, for the token after it.
        """
        num_logprobs = sequence.request.params.num_prompt_logprobs
        assert num_logprobs is not None, "its prompt is scored"
        recalled: list[TokenLogprobs] = []
        for block_hash in block_hashes:
            known = self.find(block_hash, num_logprobs)
            if known is None:
                pending = scoring_hash(block_hash, num_logprobs)
                if pool.is_pending(pending):
                    return pending
                break
            recalled += known
        sequence.recalled = recalled
        sequence.num_scored_tokens = len(recalled)
        sequence.scored_start = len(recalled) + 1
        return None

    def keep(self, sequence: Sequence, index: int, block_size: int) -> None:
        """Keep the log-probabilities of the tokens of a block of a sequence, if the sequence has them all."""
        num_logprobs = sequence.request.params.num_prompt_logprobs
        start, end = max(index * block_size, 1), (index + 1) * block_size
        first, last = start - sequence.scored_start, end - sequence.scored_start
        if num_logprobs is not None and first >= 0 and last <= len(sequence.scored):
            self.add(sequence.block_hashes[index], num_logprobs, sequence.scored[first:last])
            del sequence.scored[:last]
            sequence.scored_start = end


def scoring_hash(block_hash: bytes, num_logprobs: int) -> bytes:
    """Return the hash that is pending while a sequence computes the log-probabilities of a block."""
    return block_hash + num_logprobs.to_bytes(4)
