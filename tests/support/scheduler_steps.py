"""A scheduler without an engine, one step at a time."""

from typing import Any

from caravan.model.sampling.sample import Sample
from caravan.scheduler.config import EngineConfig
from caravan.scheduler.messages import StepOutput
from caravan.scheduler.scheduler import Scheduler
from caravan.scheduler.step_result import StepResult
from tests.scheduler.requests import FakeClock


def make_scheduler(**limits: int) -> Scheduler:
    defaults: dict[str, Any] = {
        "num_blocks": 8,
        "block_size": 4,
        "max_batch_tokens": 16,
        "max_num_seqs": 4,
        "max_model_len": 32,
    }
    return Scheduler(EngineConfig(**defaults | limits), FakeClock())


def step(scheduler: Scheduler, token_id: int = 1) -> tuple[dict[int, int], StepOutput]:
    """Run a step that draws token_id everywhere; return tokens computed per request, and the output."""
    plan = scheduler.schedule()
    samples = [Sample(token_id) for s in plan if s.wants_logits]
    computed = {s.sequence.request.request_id: s.num_tokens for s in plan}
    return computed, scheduler.commit(plan, StepResult(samples))


def run_step(scheduler: Scheduler) -> None:
    plan = scheduler.schedule()
    scheduler.commit(plan, StepResult([Sample(1) for scheduled in plan if scheduled.wants_logits]))
