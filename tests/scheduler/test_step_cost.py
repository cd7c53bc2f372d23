"""What a step costs, learned from steps."""

import random

import pytest

from caravan.scheduler.step_cost import FIRST_TOKEN_SECONDS, StepCost


def learned(steps: list[tuple[int, float]]) -> StepCost:
    cost = StepCost()
    for num_prefill_tokens, seconds in steps:
        cost.observe(num_prefill_tokens, seconds)
    return cost


def test_a_line_through_steps_of_different_sizes_is_found_despite_noise() -> None:
    dice = random.Random(0)
    sizes = [dice.choice([0, 0, 0, 64, 200, 512]) for _ in range(300)]
    cost = learned([(size, (0.02 + 0.0003 * size) * dice.uniform(0.9, 1.1)) for size in sizes])
    assert cost.prefill_seconds == pytest.approx(0.0003, rel=0.1)
    assert cost.step_seconds == pytest.approx(0.02, rel=0.3)
    assert cost.max_prefill_tokens(0.08) == pytest.approx(200, rel=0.1)


def test_a_machine_that_slows_down_is_followed_within_a_hundred_steps() -> None:
    steps = [(size, 0.02 + 0.0003 * size) for size in (0, 512) * 200]
    slower = [(size, 0.04 + 0.0009 * size) for size in (0, 512) * 50]
    cost = learned(steps + slower)
    assert cost.prefill_seconds == pytest.approx(0.0009, rel=0.2)
    assert cost.step_seconds == pytest.approx(0.04, rel=0.2)


def test_the_cost_of_a_prefill_token_has_a_default_before_the_first_measurement() -> None:
    cost = learned([(0, 0.02)] * 10)
    assert cost.prefill_seconds == FIRST_TOKEN_SECONDS
    assert cost.step_seconds == pytest.approx(0.02)
    assert cost.max_prefill_tokens(0.05) == 30
    assert cost.max_prefill_tokens(0.01) == 0


def test_steps_that_are_all_alike_bound_the_price_of_a_token() -> None:
    assert learned([(512, 0.1)] * 10).prefill_seconds == pytest.approx(0.1 / 512)


def test_nothing_seen_costs_nothing() -> None:
    assert StepCost().step_seconds == 0
