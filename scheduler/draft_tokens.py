"""Drafts: which sequences of a step get guesses at their next tokens, and how many."""

from caravan.scheduler.block_pool import BlockPool
from caravan.scheduler.block_table import extend_block_table
from caravan.scheduler.config import EngineConfig
from caravan.scheduler.sequence import ScheduledSequence
from caravan.scheduler.speculation import MAX_DRAFT_TOKENS, MAX_ROWS, PromptLookup, share_out


def with_drafts(
    plan: list[ScheduledSequence],
    config: EngineConfig,
    pool: BlockPool,
    num_running: int,
) -> list[ScheduledSequence]:
    """Return the plan with guesses where they pay, in rows and blocks that nobody else wants."""
    num_rows = sum(scheduled.num_rows for scheduled in plan)
    max_rows = min(MAX_ROWS, config.max_batch_tokens)
    candidates = [i for i, scheduled in enumerate(plan) if scheduled.wants_logits and not scheduled.sequence.matcher]
    if num_rows >= max_rows or not candidates:
        return plan
    # No guess shall be why a sequence is preempted: each may want a block in the next step, its guess some now.
    has_spare_blocks = pool.num_free > num_running * (1 + -(-MAX_DRAFT_TOKENS // config.block_size))
    lookups: list[PromptLookup] = []
    limits: list[int] = []
    for sequence in (plan[index].sequence for index in candidates):
        lookup = sequence.lookup = sequence.lookup or PromptLookup(sequence.num_prompt_tokens)
        lookup.observe(sequence.token_ids)
        lookups.append(lookup)
        num_left = sequence.request.params.max_tokens - sequence.num_output_tokens
        limit = min(num_left, config.max_model_len - sequence.num_tokens) - 1
        room = len(sequence.block_table) * config.block_size - sequence.num_tokens
        limits.append(limit if has_spare_blocks else min(limit, room))
    plan = list(plan)
    for index, lookup, count in zip(candidates, lookups, share_out(lookups, limits, num_rows, max_rows), strict=True):
        sequence, num_tokens, *_ = plan[index]
        if count and extend_block_table(pool, sequence, num_tokens + count, config.block_size):
            plan[index] = plan[index]._replace(draft_token_ids=lookup.guess(sequence.token_ids, count))
    return plan
