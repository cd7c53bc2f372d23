"""Measure the cost of a step outside the model: `python -m benchmarks.scheduling`.

32 sequences of 1,000 tokens decode; and the same scheduler with 10 and with 10,000 waiting requests.
"""

import statistics
import time
from collections.abc import Callable

import torch

from caravan.model.sampling.sample import Sample
from caravan.model.sampling.sampling_params import SamplingParams
from caravan.scheduler.batch import BatchBuilder
from caravan.scheduler.config import EngineConfig
from caravan.scheduler.messages import Request
from caravan.scheduler.scheduler import Scheduler
from caravan.scheduler.sequence import ScheduledSequence
from caravan.scheduler.step_result import StepResult

NUM_STEPS = 500
CONTEXT = 1000


def full_scheduler(num_running: int, num_waiting: int) -> Scheduler:
    """Return a scheduler whose running sequences all decode at the same context."""
    config = EngineConfig(num_blocks=8192, max_batch_tokens=2048, max_num_seqs=num_running, max_model_len=2048)
    scheduler = Scheduler(config)
    for index in range(num_running + num_waiting):
        prompt = [(index * 7919 + position * 31) % 49152 for position in range(CONTEXT if index < num_running else 20)]
        params = SamplingParams(seed=0, max_tokens=NUM_STEPS * 2, temperature=0)
        scheduler.add(Request(request_id=index, prompt_token_ids=prompt, params=params))
    while any(sequence.num_output_tokens == 0 for sequence in scheduler.running) or not scheduler.running:
        step(scheduler)
    return scheduler


def step(scheduler: Scheduler) -> tuple[float, float]:
    """Return the seconds that schedule and commit take in one step without a model."""
    started = time.perf_counter()
    plan = scheduler.schedule()
    scheduled = time.perf_counter()
    samples: list[Sample | None] = [Sample(index % 1000) for index, one in enumerate(plan) if one.wants_logits]
    sampled = time.perf_counter()
    scheduler.commit(plan, StepResult(samples))
    return scheduled - started, time.perf_counter() - sampled


def microseconds(run: Callable[[], float]) -> str:
    """Return the median and the 99th percentile of the seconds that `run` returns, in microseconds."""
    times = sorted(run() * 1e6 for _ in range(NUM_STEPS))
    return f"{statistics.median(times):7.0f} {times[int(0.99 * len(times))]:7.0f}"


def main() -> None:
    """Print a table."""
    print("microseconds                                  p50     p99")
    for num_waiting in (10, 10_000):
        scheduler = full_scheduler(32, num_waiting)
        print(f"schedule + commit, {num_waiting:6,} waiting      ", microseconds(lambda: sum(step(scheduler))))  # noqa: B023
        last = list(scheduler.waiting)[-1].request.request_id
        started = time.perf_counter()
        scheduler.abort(last)
        print(f"abort of the last of {num_waiting:6,}           {(time.perf_counter() - started) * 1e6:7.0f}")
    plan: list[ScheduledSequence] = full_scheduler(32, 0).schedule()
    builder = BatchBuilder(32, 128, 16, torch.device("cpu"))

    def build() -> float:
        started = time.perf_counter()
        builder.build(plan)
        return time.perf_counter() - started

    print("build the batch                        ", microseconds(build))


if __name__ == "__main__":
    main()
