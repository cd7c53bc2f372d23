"""Recorder: a real engine in this process, with requests that arrive at known times."""

import time
from collections.abc import Sequence

from benchmarks.simulation.arrivals import Arrival, Prompts
from benchmarks.simulation.journal import Journal
from benchmarks.simulation.step_cost import MeasuredStep, StepLoad
from caravan.scheduler.engine import Engine


def record(engine: Engine, arrivals: Sequence[Arrival], prompts: Prompts) -> tuple[Journal, list[MeasuredStep]]:
    """Run an idle engine until all arrivals have ended; return what happened to them, and each step.

    The seconds of a step are those of the whole loop: requests added before it, schedule, run and commit.
    """
    assert not engine.scheduler.has_work
    requests = [prompts.request(arrival) for arrival in arrivals]
    journal = Journal()
    steps: list[MeasuredStep] = []
    next_arrival = 0
    started = time.perf_counter()
    while next_arrival < len(arrivals) or engine.has_work:
        now = time.perf_counter() - started
        while next_arrival < len(arrivals) and arrivals[next_arrival].seconds <= now:
            arrival, request = arrivals[next_arrival], requests[next_arrival]
            next_arrival += 1
            if len(request.prompt_token_ids) >= engine.config.max_model_len:
                journal.num_rejected += 1
                continue
            journal.arrive(arrival.request_id, arrival.seconds, len(request.prompt_token_ids))
            engine.add(request)
        if not engine.has_work:
            if next_arrival < len(arrivals):
                time.sleep(max(arrivals[next_arrival].seconds - now, 0.0))
            continue
        plan = engine.scheduler.schedule()
        load = StepLoad.of(plan)
        output = engine.scheduler.commit(plan, engine.run(plan))
        ended = time.perf_counter() - started
        steps.append(MeasuredStep(load, ended - now))
        journal.count_step(output.stats, ended - now)
        journal.deliver_step(output, ended)
    return journal, steps
