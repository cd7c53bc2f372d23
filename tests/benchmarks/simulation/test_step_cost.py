"""The cost of a step: what a plan counts as, and the fit."""

import random

import msgspec
import pytest

from benchmarks.simulation.replica import made_up
from benchmarks.simulation.step_cost import MeasuredStep, StepCost, StepLoad, fit, median_error, relative_errors
from caravan.model.sampling.sampling_params import SamplingParams
from caravan.scheduler.messages import Request
from caravan.scheduler.scheduler import Scheduler
from tests.benchmarks.simulation.fleets import COST, limits


def steps(cost: StepCost, count: int, noise: float) -> list[MeasuredStep]:
    source = random.Random(1)
    found = []
    for _ in range(count):
        rows, prefill = source.randrange(32), source.choice([0, 0, source.randrange(1, 512)])
        load = StepLoad(prefill, rows, rows * source.randrange(16, 2000), prefill * source.uniform(1, 2000))
        found.append(MeasuredStep(load, cost.seconds(load) * source.lognormvariate(0, noise)))
    return found


def test_the_fit_recovers_the_cost_that_steps_were_made_with() -> None:
    found = fit(steps(COST, 200, noise=0.0))
    assert msgspec.structs.asdict(found) == pytest.approx(msgspec.structs.asdict(COST), rel=1e-6)


def test_the_fit_recovers_the_cost_from_noisy_steps() -> None:
    measured = steps(COST, 3000, noise=0.1)
    found = fit(measured)
    assert msgspec.structs.asdict(found) == pytest.approx(msgspec.structs.asdict(COST), rel=0.1)
    assert 0.05 < median_error(found, measured) < 0.09  # 0.0675 for this noise


def test_the_sum_of_all_steps_is_predicted_exactly() -> None:
    measured = steps(COST, 500, noise=0.5)
    found = fit(measured)
    assert sum(found.seconds(step.load) for step in measured) == pytest.approx(
        sum(s.seconds for s in measured), rel=1e-4
    )
    assert abs(sum(relative_errors(found, measured))) > 1  # a fit of relative errors would have none in sum


def test_a_part_that_would_be_negative_is_0() -> None:
    measured = [
        MeasuredStep(load, 0.1 + 0.001 * load.prefill_tokens - 1e-7 * load.kv_tokens)
        for load, _ in steps(COST, 200, noise=0.0)
    ]
    found = fit(measured)
    assert found.kv_token_seconds == 0
    assert found.prefill_token_seconds == pytest.approx(0.001, rel=0.05)


def test_too_few_steps_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"9 steps are too few to fit a cost. Run more requests."):
        fit(steps(COST, 9, noise=0.0))


def test_a_step_without_duration_is_an_error() -> None:
    with pytest.raises(ValueError, match="no duration"):
        fit([*steps(COST, 20, noise=0.0), MeasuredStep(StepLoad(1), 0.0)])


@pytest.mark.parametrize(
    ("changes", "error"), [({"step_seconds": -1.0}, "step_seconds is -1.0"), ({}, "must take time")]
)
def test_a_cost_without_sense_is_an_error(changes: dict[str, float], error: str) -> None:
    with pytest.raises(ValueError, match=error):
        StepCost(**dict.fromkeys(StepCost.__struct_fields__, 0.0) | changes)


def test_a_plan_counts_as_its_prompt_tokens_rows_and_attended_positions() -> None:
    scheduler = Scheduler(limits(max_batch_tokens=10), clock=lambda: 0.0)
    params = SamplingParams(seed=0, max_tokens=9)
    scheduler.add(Request(request_id=1, prompt_token_ids=[*range(4)], params=params))
    scheduler.commit(plan := scheduler.schedule(), made_up(plan))
    scheduler.add(Request(request_id=2, prompt_token_ids=[*range(10, 23)], params=params))
    plan = scheduler.schedule()  # one row at position 5, and the first 9 tokens of a prompt of 13
    assert StepLoad.of(plan) == (9, 1, 5, sum(range(1, 10)))
    scheduler.commit(plan, made_up(plan))
    plan = scheduler.schedule()  # a row at position 6, and the other 4 tokens
    assert StepLoad.of(plan) == (4, 1, 6, sum(range(10, 14)))
