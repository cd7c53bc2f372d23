"""DraftTokens: which sequences of a step get draft tokens, how many, and from where."""

from collections.abc import Sequence as Seq

from caravan.scheduler.block_manager import BlockManager
from caravan.scheduler.block_pool import num_blocks_for
from caravan.scheduler.config import EngineConfig
from caravan.scheduler.earlier_answers import AnswerLookup, EarlierAnswers
from caravan.scheduler.model_drafts import ModelDrafts
from caravan.scheduler.sequence import ScheduledSequence, Sequence
from caravan.scheduler.speculation import (
    FIXED_COST_ROWS,
    MAX_DRAFT_TOKENS,
    MAX_ROWS,
    Lookup,
    PromptLookup,
    allocate_draft_tokens,
)


class DraftTokens:
    """Adds draft tokens to plans, and learns which of them were right.

    A sequence's own text and earlier answers cost nothing. The draft model is for sequences where it is more often
    right than they are.
    """

    def __init__(self, config: EngineConfig, blocks: BlockManager) -> None:
        self.fixed_rows: float = FIXED_COST_ROWS  # the fixed cost of a step, in rows
        self._config = config
        self._blocks = blocks
        self._answers = EarlierAnswers()
        self.model = ModelDrafts(config, blocks) if config.max_draft_model_len else None

    def add_to(self, plan: list[ScheduledSequence], num_running: int) -> list[ScheduledSequence]:
        """Return the plan with draft tokens where they pay, in rows and blocks that no sequence needs otherwise."""
        if self.model is not None:
            self.model.start_step()
        num_rows = sum(scheduled.num_rows for scheduled in plan)
        max_rows = min(MAX_ROWS, self._config.max_batch_tokens)
        indices = [i for i, scheduled in enumerate(plan) if scheduled.wants_logits and not scheduled.sequence.matcher]
        if num_rows >= max_rows or not indices:
            return plan
        plan = list(plan)
        sequences = [plan[index].sequence for index in indices]
        lookups = [self._lookup(sequence) for sequence in sequences]
        limits = self._limits(sequences, num_running)
        if self.model is not None:
            num_rows += self.model.add_to(plan, indices, lookups, limits, num_rows)
        counts = allocate_draft_tokens(lookups, limits, num_rows, max_rows, self.fixed_rows)
        for index, lookup, count in zip(indices, lookups, counts, strict=True):
            scheduled = plan[index]
            if count and self._blocks.extend(scheduled.sequence, scheduled.num_tokens + count):
                plan[index] = scheduled._replace(
                    draft_token_ids=lookup.draft(scheduled.sequence.token_ids, count),
                    draft_source="answers" if isinstance(lookup, AnswerLookup) else "text",
                )
        return plan

    def remember(self, sequence: Sequence) -> None:
        """Keep the answer of a sequence that has ended, for later ones of its key."""
        if sequence.num_output_tokens:  # embeddings and prompts have no answer
            self._answers.of(sequence.request).add(sequence.output_token_ids)

    def _lookup(self, sequence: Sequence) -> Lookup:
        """Return where a sequence's next tokens probably stand: in its own text, or in an earlier answer."""
        if sequence.lookup is None or sequence.answer_lookup is None:
            sequence.lookup = PromptLookup(sequence.num_prompt_tokens)
            sequence.answer_lookup = AnswerLookup(self._answers.of(sequence.request), sequence.num_prompt_tokens)
        sequence.lookup.observe(sequence.token_ids)
        sequence.answer_lookup.observe(sequence.token_ids)
        is_own = sequence.lookup.acceptance >= sequence.answer_lookup.acceptance
        return sequence.lookup if is_own else sequence.answer_lookup

    def _limits(self, sequences: Seq[Sequence], num_running: int) -> list[int]:
        """Return how many draft tokens each sequence can have at most.

        They must not cause a preemption: each sequence may need a block in the next step, its draft tokens some now.
        """
        block_size = self._blocks.block_size
        num_draft_blocks = num_blocks_for(MAX_DRAFT_TOKENS, block_size)
        has_spare_blocks = self._blocks.pool.num_free > num_running * (1 + num_draft_blocks)
        limits: list[int] = []
        for sequence in sequences:
            num_left = sequence.request.params.max_tokens - sequence.num_output_tokens
            limit = min(num_left, self._config.max_model_len - sequence.num_tokens) - 1
            num_left_in_blocks = len(sequence.block_table) * block_size - sequence.num_tokens
            limits.append(limit if has_spare_blocks else min(limit, num_left_in_blocks))
        return limits
