"""Lay a plan out as the tensors of one step."""

import torch

from model.forward_batch import ForwardBatch
from scheduler.sequence import ScheduledSequence


def build_forward_batch(plan: list[ScheduledSequence], block_size: int, device: torch.device) -> ForwardBatch:
    """Return the batch of a plan with at least one sequence: all their tokens end to end, in the plan's order."""
    token_ids: list[int] = []
    positions: list[int] = []
    slot_mapping: list[int] = []
    query_start_loc = [0]
    logits_rows: list[int] = []
    for scheduled in plan:
        sequence = scheduled.sequence
        start = sequence.num_computed_tokens
        end = start + scheduled.num_tokens
        token_ids += sequence.token_ids[start:end]
        positions += range(start, end)
        slot_mapping += slots(sequence.block_table, start, end, block_size)
        query_start_loc.append(len(token_ids))
        if scheduled.wants_logits:
            logits_rows.append(len(token_ids) - 1)
    width = max(len(scheduled.sequence.block_table) for scheduled in plan)
    tables = [s.sequence.block_table + [0] * (width - len(s.sequence.block_table)) for s in plan]
    seq_lens = [s.sequence.num_computed_tokens + s.num_tokens for s in plan]
    return ForwardBatch(
        token_ids=torch.tensor(token_ids, device=device),  # [T]
        positions=torch.tensor(positions, device=device),  # [T]
        slot_mapping=torch.tensor(slot_mapping, device=device),  # [T]
        query_start_loc=torch.tensor(query_start_loc, dtype=torch.int32, device=device),  # [B + 1]
        seq_lens=torch.tensor(seq_lens, dtype=torch.int32, device=device),  # [B]
        block_tables=torch.tensor(tables, dtype=torch.int32, device=device),  # [B, width]
        logits_rows=torch.tensor(logits_rows, dtype=torch.int64, device=device),  # [S]
    )


def slots(block_table: list[int], start: int, end: int, block_size: int) -> list[int]:
    """Return the cache slot of each position in [start, end), in tokens.

    A slot is block * block_size + offset. Positions must lie inside the table.
    Source: PagedAttention (arXiv:2309.06180), section 4.2.
    """
    return [block_table[p // block_size] * block_size + p % block_size for p in range(start, end)]
