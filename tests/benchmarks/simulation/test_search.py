"""The search for the smallest fleet."""

from dataclasses import replace
from typing import Any

import pytest

from benchmarks.simulation.sampling import FleetFigures, simulate_fleet
from benchmarks.simulation.search import Target, Trial, best, combinations, search, smallest
from tests.benchmarks.simulation.fleets import COST, FREE, limits, poisson_load


def a_trial(num_replicas: int, *, is_met: bool, **changes: int) -> Trial:
    found: Any = None
    return Trial(limits(**changes), num_replicas, found, is_met)


@pytest.mark.parametrize("first", [1, 7, 50, 100])
@pytest.mark.parametrize("fewest", [1, 2, 8, 33, 99, 100])
def test_the_fewest_replicas_are_found_from_every_start(first: int, fewest: int) -> None:
    trials = list(smallest(lambda number: a_trial(number, is_met=number >= fewest), first, 100))
    tried = {trial.num_replicas: trial.is_met for trial in trials}
    assert len(tried) == len(trials) < 25
    assert tried[fewest]
    assert fewest == 1 or tried[fewest - 1] is False


def test_the_search_ends_with_the_largest_fleet_if_no_fleet_meets_the_target() -> None:
    trials = list(smallest(lambda number: a_trial(number, is_met=False), 3, 100))
    assert trials[-1].num_replicas == 100
    assert best(trials) is None


def test_the_best_fleet_has_the_fewest_replicas_and_then_the_smallest_pool() -> None:
    load = poisson_load(1.0, 5.0)
    found = simulate_fleet(load, num_replicas=1, config=limits(), cost=COST, api=FREE)
    slow = replace(found, figures=replace(found.figures, first_token=replace(found.figures.first_token, p95=99.0)))

    def met(num_replicas: int, num_blocks: int, figures: FleetFigures) -> Trial:
        return Trial(limits(num_blocks=num_blocks), num_replicas, figures, is_met=True)

    trials = [met(3, 64, found), met(2, 512, found), met(2, 256, slow), met(2, 256, found), a_trial(1, is_met=False)]
    assert best(trials) is trials[3]


def test_a_fleet_with_one_replica_less_misses_the_target() -> None:
    load = poisson_load(6.0, 30.0)
    configs = combinations(limits(), [256], [64, 128], [8])
    trials = list(search(load, configs, Target(first_token_seconds=0.6, max_replicas=50), cost=COST, api=FREE))
    for config in configs:
        tried = {trial.num_replicas: trial for trial in trials if trial.config == config}
        fewest = min(number for number, trial in tried.items() if trial.is_met)
        assert fewest > 1
        assert tried[fewest].found.figures.first_token.p95 <= 0.6
        assert tried[fewest - 1].found.figures.first_token.p95 > 0.6


def test_limits_that_contradict_each_other_are_an_error() -> None:
    with pytest.raises(ValueError, match="does not fit in a KV pool"):
        combinations(limits(), [8], [64], [8])
