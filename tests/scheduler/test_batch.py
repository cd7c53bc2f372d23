"""The tensors of a step against the plan they stand for."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from caravan.model.sampling.sample import Sample
from caravan.scheduler.batch import BatchBuilder, sampling_rows
from caravan.scheduler.config import EngineConfig
from caravan.scheduler.scheduler import Scheduler
from caravan.scheduler.sequence import ScheduledSequence
from caravan.scheduler.step_result import StepResult
from tests.scheduler.requests import make_request

BLOCK_SIZE = 3


def check(builder: BatchBuilder, plan: list[ScheduledSequence]) -> None:
    """Compare each tensor with what the plan says, token by token."""
    batch = builder.build(plan)
    width = max(len(s.sequence.block_table) for s in plan)
    tokens, positions, cache_slots, starts = [], [], [], [0]
    wanted_rows: list[int] = []
    for scheduled in plan:
        sequence = scheduled.sequence
        first = sequence.num_computed_tokens
        end = first + scheduled.num_tokens
        computed = [*sequence.token_ids[first:end], *scheduled.draft_token_ids]
        for position, token_id in enumerate(computed, start=first):
            tokens.append(token_id)
            positions.append(position)
            cache_slots.append(sequence.block_table[position // BLOCK_SIZE] * BLOCK_SIZE + position % BLOCK_SIZE)
        starts.append(len(tokens))
        if scheduled.wants_logits:
            wanted_rows += range(len(tokens) - 1 - len(scheduled.draft_token_ids), len(tokens))
    assert batch.token_ids.tolist() == tokens
    assert batch.positions.tolist() == positions
    assert batch.slot_mapping.tolist() == cache_slots
    assert batch.query_start_loc.tolist() == starts
    assert batch.seq_lens.tolist() == [
        s.sequence.num_computed_tokens + s.num_tokens + len(s.draft_token_ids) for s in plan
    ]
    tables = [s.sequence.block_table for s in plan]
    assert batch.block_tables.tolist() == [table + [0] * (width - len(table)) for table in tables]
    assert batch.wanted_rows.tolist() == wanted_rows
    tensors = {name: tensor for name, tensor in vars(batch).items() if name != "row_slots"}
    assert batch.row_slots is None  # no request has an adapter
    assert all(tensor.is_contiguous() for tensor in tensors.values())
    dtypes = {name: tensor.dtype for name, tensor in tensors.items()}
    assert [name for name, dtype in dtypes.items() if dtype == torch.int32] == [
        "query_start_loc",
        "seq_lens",
        "block_tables",
    ]
    assert set(dtypes.values()) == {torch.int32, torch.int64}


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(draw=st.data())
def test_the_tensors_of_every_step_follow_its_plan(draw: st.DataObject) -> None:
    num_seqs, num_blocks = draw.draw(st.integers(1, 4)), draw.draw(st.integers(8, 14))
    budget = draw.draw(st.integers(2, 12))
    config = EngineConfig(
        num_blocks=num_blocks,
        block_size=BLOCK_SIZE,
        max_batch_tokens=budget,
        max_num_seqs=num_seqs,
        max_model_len=24,
        speculation=draw.draw(st.sampled_from(["on", "off"])),
    )
    scheduler = Scheduler(config)
    builder = BatchBuilder(num_seqs, config.max_num_blocks, BLOCK_SIZE, torch.device("cpu"))
    for request_id in range(draw.draw(st.integers(1, 8))):
        prompt = draw.draw(st.lists(st.integers(0, 2), min_size=1, max_size=20))
        scheduler.add(make_request(request_id, prompt, max_tokens=draw.draw(st.integers(1, 20))))
    while scheduler.has_work:
        plan = scheduler.schedule()
        check(builder, plan)
        samples = [Sample(draw.draw(st.integers(0, 2))) for s in plan for _ in range(s.num_logits)]
        scheduler.commit(plan, StepResult([*samples]))


def test_only_rows_with_penalties_have_the_text_so_far() -> None:
    scheduler = Scheduler(EngineConfig(num_blocks=8, block_size=4, max_model_len=32))
    scheduler.add(make_request(0, [1, 2], output=[3]))
    scheduler.add(make_request(1, [1, 2], output=[3], presence_penalty=0.5))
    plain, penalized = sampling_rows(scheduler.schedule())
    assert (plain.position, list(plain.prompt_token_ids), list(plain.output_token_ids)) == (1, [], [])
    assert (penalized.position, list(penalized.prompt_token_ids), list(penalized.output_token_ids)) == (1, [1, 2], [3])


def test_rows_after_draft_tokens_count_them_as_output() -> None:
    scheduler = Scheduler(EngineConfig(num_blocks=8, block_size=4, max_model_len=32))
    scheduler.add(make_request(0, [1, 2], output=[3], frequency_penalty=0.5))
    [scheduled] = scheduler.schedule()
    rows = sampling_rows([scheduled._replace(draft_token_ids=(7, 8))])
    assert [(row.position, list(row.output_token_ids)) for row in rows] == [(1, [3]), (2, [3, 7]), (3, [3, 7, 8])]
