"""Draft tokens: which sequences of a step get them, and how many."""

from caravan.scheduler.block_manager import BlockManager
from caravan.scheduler.block_pool import num_blocks_for
from caravan.scheduler.config import EngineConfig
from caravan.scheduler.sequence import ScheduledSequence
from caravan.scheduler.speculation import MAX_DRAFT_TOKENS, MAX_ROWS, PromptLookup, allocate_draft_tokens


def with_draft_tokens(
    plan: list[ScheduledSequence],
    config: EngineConfig,
    blocks: BlockManager,
    num_running: int,
) -> list[ScheduledSequence]:
    """Return the plan with draft tokens where they pay, in rows and blocks that no sequence needs otherwise."""
    num_rows = sum(scheduled.num_rows for scheduled in plan)
    max_rows = min(MAX_ROWS, config.max_batch_tokens)
    candidates = [i for i, scheduled in enumerate(plan) if scheduled.wants_logits and not scheduled.sequence.matcher]
    if num_rows >= max_rows or not candidates:
        return plan
    # Draft tokens must not cause a preemption: each sequence may need a block in the next step, its drafts some now.
    num_draft_blocks = num_blocks_for(MAX_DRAFT_TOKENS, blocks.block_size)
    has_spare_blocks = blocks.pool.num_free > num_running * (1 + num_draft_blocks)
    lookups: list[PromptLookup] = []
    limits: list[int] = []
    for sequence in (plan[index].sequence for index in candidates):
        lookup = sequence.lookup = sequence.lookup or PromptLookup(sequence.num_prompt_tokens)
        lookup.observe(sequence.token_ids)
        lookups.append(lookup)
        num_left = sequence.request.params.max_tokens - sequence.num_output_tokens
        limit = min(num_left, config.max_model_len - sequence.num_tokens) - 1
        num_left_in_blocks = len(sequence.block_table) * blocks.block_size - sequence.num_tokens
        limits.append(limit if has_spare_blocks else min(limit, num_left_in_blocks))
    plan = list(plan)
    counts = allocate_draft_tokens(lookups, limits, num_rows, max_rows)
    for index, lookup, count in zip(candidates, lookups, counts, strict=True):
        sequence, num_tokens, *_ = plan[index]
        if count and blocks.extend(sequence, num_tokens + count):
            plan[index] = plan[index]._replace(draft_token_ids=lookup.draft(sequence.token_ids, count))
    return plan
