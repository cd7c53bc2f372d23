"""ModelDrafts: the draft tokens of a plan that a draft model is to propose."""

from collections.abc import Sequence as Seq

from caravan.scheduler.block_manager import BlockManager
from caravan.scheduler.config import EngineConfig
from caravan.scheduler.draft_blocks import DraftBlocks
from caravan.scheduler.draft_policy import DraftCandidate, DraftPolicy
from caravan.scheduler.sequence import ScheduledSequence
from caravan.scheduler.speculation import MAX_DRAFT_TOKENS, MAX_ROWS, Lookup

UNKNOWN_TOKEN = 0  # in a plan, until the draft model has run


class ModelDrafts:
    """Adds the draft tokens of the draft model to plans, as its policy chooses, and counts what it has computed."""

    def __init__(self, config: EngineConfig, blocks: BlockManager) -> None:
        self._config = config
        self._blocks = blocks
        self._draft_blocks = DraftBlocks(blocks.pool, blocks.block_size)
        self.policy = DraftPolicy()

    def start_step(self) -> None:
        """Begin a step."""
        self.policy.start_step()
        self._draft_blocks.start_step()

    def forget(self, block: int) -> None:
        """Record that a block was cleared."""
        self._draft_blocks.forget(block)

    def add_to(
        self,
        plan: list[ScheduledSequence],
        indices: Seq[int],
        lookups: Seq[Lookup],
        limits: list[int],
        num_rows: int,
    ) -> int:
        """Replace the sequences of a plan that the draft model works on, and return the number of their draft tokens.

        Those are UNKNOWN_TOKEN until it has run. `indices`, `lookups` and `limits` are those of the sequences that can
        have draft tokens; the limits of those that get them here become 0.
        """
        candidates: dict[int, DraftCandidate] = {}  # by place in indices
        for place, index in enumerate(indices):
            sequence = plan[index].sequence
            limit = min(limits[place], self._config.max_draft_model_len - sequence.num_tokens, MAX_DRAFT_TOKENS)
            chance = self.policy.chance(sequence)
            if limit > 0 and chance > lookups[place].acceptance:
                self._draft_blocks.skip_computed(sequence)
                num_missing = sequence.num_tokens - sequence.num_draft_computed_tokens
                num_left = sequence.request.params.max_tokens - sequence.num_output_tokens
                candidates[place] = DraftCandidate(sequence, chance, limit, num_missing, num_left)
        max_tokens = self._config.max_batch_tokens
        shares = self.policy.choose([*candidates.values()], num_rows, min(MAX_ROWS, max_tokens), max_tokens)
        num_draft_tokens = 0
        for (place, candidate), share in zip(candidates.items(), shares, strict=True):
            scheduled, sequence, count = plan[indices[place]], candidate.sequence, share.num_draft_tokens
            if count and not self._blocks.extend(sequence, scheduled.num_tokens + count):
                continue
            num_tokens = self._draft_blocks.take(sequence, share.num_rows, count)
            if num_tokens != share.num_rows:
                count = 0
            if not num_tokens:
                continue
            plan[indices[place]] = scheduled._replace(
                draft_token_ids=(UNKNOWN_TOKEN,) * count, draft_source="model", num_draft_model_rows=num_tokens
            )
            num_draft_tokens += count
            limits[place] = 0 if count else limits[place]
        return num_draft_tokens

    def learn(self, scheduled: ScheduledSequence, token_ids: Seq[int]) -> None:
        """Learn from the tokens that a scheduled sequence got in a step, after the scheduler has counted them."""
        sequence, drafts = scheduled.sequence, scheduled.draft_token_ids
        if not scheduled.num_draft_model_rows:
            return
        if scheduled.draft_source == "model" and token_ids:
            num_right = len(token_ids) - 1
            is_wrong = num_right < len(drafts) and token_ids[-1] != drafts[num_right]
            self.policy.learn(sequence, num_right, is_wrong=is_wrong)
        # Each run of the draft model but the last computes the draft token of the run before it.
        num_computed = sequence.num_draft_computed_tokens + scheduled.num_draft_model_rows
        num_computed += max(scheduled.num_model_draft_tokens - 1, 0)
        sequence.num_draft_computed_tokens = min(num_computed, sequence.num_computed_tokens)
        self._draft_blocks.mark_computed(sequence)
