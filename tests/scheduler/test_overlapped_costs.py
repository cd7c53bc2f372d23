"""What is learned from steps that overlap: the time that the device needs, not that of launches, nor of two steps."""

import time
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from caravan.model.attention.reference import ReferenceAttention
from caravan.model.llama import Llama
from caravan.model.sampling.sample import Sample
from caravan.scheduler.config import EngineConfig
from caravan.scheduler.decode_step import DecodeScheduler
from caravan.scheduler.draft_model import DraftModel
from caravan.scheduler.prefill_limiter import PrefillLimiter
from caravan.scheduler.row_cost import RowCost
from caravan.scheduler.sequence import ScheduledSequence, Sequence
from caravan.scheduler.speculation import FIXED_COST_ROWS, PromptLookup, allocate_draft_tokens
from caravan.scheduler.step_counters import StepCounters, StepRecord
from caravan.scheduler.step_result import StepResult
from tests.scheduler.requests import FakeClock, make_request
from tests.scheduler.slot_simulator import SlotSimulator
from tests.support.tiny_llama import TINY

STEP_SECONDS, PREFILL_SECONDS = 0.01, 0.002  # of the simulator's steps


@pytest.mark.parametrize("is_overlapped", [False, True], ids=["serial", "overlapped"])
def test_the_cost_of_a_step_is_learned_whether_it_overlaps_or_not(is_overlapped: bool) -> None:
    config = EngineConfig(num_blocks=400, block_size=4, max_batch_tokens=64, max_num_seqs=8, max_model_len=200)
    simulator = SlotSimulator(config, is_overlapped=is_overlapped)
    lengths = [3, 40, 150, 20, 90, 5, 60, 110, 35, 70]
    for number, length in enumerate(lengths):
        simulator.add(make_request(number, [number] * length, max_tokens=20))
        for _ in range(4):
            simulator.step()
    while simulator.scheduler.has_work:
        simulator.step()
    assert (simulator.num_steps_ahead > 20) == is_overlapped
    cost = simulator.scheduler._limiter._cost
    assert cost.step_seconds == pytest.approx(STEP_SECONDS, rel=0.02)
    assert cost.prefill_seconds == pytest.approx(PREFILL_SECONDS, rel=0.02)


def test_a_late_step_is_judged_by_its_own_target_not_by_that_of_the_step_planned_after_it() -> None:
    limiter = PrefillLimiter(0.1)
    streams = cast("list[Sequence]", [SimpleNamespace(num_output_tokens=1)])
    limiter.max_prefill_tokens(streams, 1, 512)
    late = StepRecord(planned_seconds=limiter.planned_seconds, counters=StepCounters(num_prefill_tokens=100))
    assert limiter.max_prefill_tokens([], 1, 512) == 512  # no stream is left: the next step has no target
    limiter.observe(late, 0.5)
    assert limiter._cap == 20  # a fifth of what took five times as long


def drafting_scheduler(**limits: Any) -> DecodeScheduler:
    config = EngineConfig(num_blocks=64, block_size=8, max_model_len=128, speculation="on", **limits)
    return DecodeScheduler(config, FakeClock())


@pytest.mark.parametrize("is_launched", [False, True])
def test_a_draft_model_is_compared_with_serial_steps_alone(is_launched: bool) -> None:
    """Steps with draft tokens are serial, and so are those that they replace."""
    scheduler = drafting_scheduler(max_draft_model_len=64)
    scheduler.add(make_request(0, [1, 2], max_tokens=9))
    plan = scheduler.schedule()
    scheduler.record.is_launched = is_launched
    scheduler.commit(plan, StepResult([Sample(3)]))
    assert scheduler.model_drafts is not None
    assert scheduler.model_drafts.policy._target.is_known != is_launched


def play(scheduler: DecodeScheduler, row_seconds: float) -> None:
    """Run a step that takes 4 milliseconds and some for each of its rows."""
    assert isinstance(scheduler.clock, FakeClock)
    plan = scheduler.schedule()
    scheduler.clock.seconds += 0.004 + row_seconds * sum(scheduled.num_rows for scheduled in plan)
    samples = [Sample(7) for scheduled in plan for _ in range(scheduled.num_logits)]
    scheduler.commit(plan, StepResult(samples))


@pytest.mark.parametrize(("row_seconds", "least", "most"), [(0.00001, 50, 1000), (0.0004, 8, 12), (0.004, 0, 2)])
def test_draft_tokens_from_texts_have_the_costs_of_the_gpus_steps(row_seconds: float, least: int, most: int) -> None:
    """4 milliseconds are as much as 400, 10 and 1 of the rows; the estimate of the first is bounded."""
    scheduler = drafting_scheduler()
    assert scheduler.draft_tokens is not None
    assert scheduler.draft_tokens.fixed_rows == FIXED_COST_ROWS
    for number in range(12):
        scheduler.add(make_request(number, [number + 1], max_tokens=6 + 2 * number))
        play(scheduler, row_seconds)
    while scheduler.has_work:
        play(scheduler, row_seconds)
    assert least < scheduler.draft_tokens.fixed_rows < most


def test_the_dearer_a_row_the_fewer_draft_tokens() -> None:
    lookup = PromptLookup(4)
    lookup.observe([1, 2, 3, 1, 2, 3, 1])

    def num_drafts(fixed_rows: float) -> int:
        return allocate_draft_tokens([lookup], [8], 1, fixed_rows=fixed_rows)[0]

    assert num_drafts(1) < num_drafts(10) < num_drafts(100)
    assert allocate_draft_tokens([lookup], [8], 1) == [num_drafts(FIXED_COST_ROWS)]


def test_a_cost_of_which_nothing_is_known_has_the_fixed_part_that_is_assumed() -> None:
    cost = RowCost()
    assert cost.fixed_rows == FIXED_COST_ROWS
    for num_rows in range(1, 30):
        cost.observe(num_rows, 0.5 + 0.1 * num_rows)
    assert cost.fixed_rows == pytest.approx(5, rel=0.1)


class LaunchedStates:
    """Hidden states that a GPU still computes."""

    is_cuda, device = True, torch.device("cuda", 0)


class LaunchingLlama(Llama):
    """A model whose launches take no time."""

    def hidden_states(self, *_: Any) -> Any:
        return LaunchedStates()


def test_a_run_of_the_draft_model_that_drafts_nothing_takes_as_long_as_the_device_needs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = FakeClock()

    def synchronize(device: torch.device) -> None:
        assert device.type == "cuda"
        clock.seconds += 0.25

    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    monkeypatch.setattr(time, "perf_counter", clock)
    config = EngineConfig(num_blocks=8, block_size=8, max_model_len=32, speculation="on", max_draft_model_len=32)
    with torch.device("meta"):
        model = LaunchingLlama(TINY, ReferenceAttention())
    draft = DraftModel(model, config, torch.float32, torch.device("cpu"))
    sequence = Sequence.of(make_request(0, [1, 2, 3, 4, 5]))
    sequence.block_table = [0]
    runs: list[tuple[int, float]] = []
    draft.complete(
        [ScheduledSequence(sequence, 5, num_draft_model_rows=4)], lambda rows, seconds: runs.append((rows, seconds))
    )
    assert runs == [(4, 0.25)]
