"""Samples of a fleet stand for the whole of it."""

from typing import Any

from benchmarks.simulation.sampling import FleetFigures, simulate_fleet
from tests.benchmarks.simulation.fleets import COST, FREE, limits, poisson_load

NUM_REPLICAS = 48


def fleet(group: int, num_groups: int, **changes: Any) -> FleetFigures:
    load = poisson_load(1.3 * NUM_REPLICAS, 25.0, shared_prefix_tokens=32, num_prefixes=2, seed=1)
    return simulate_fleet(
        load,
        num_replicas=NUM_REPLICAS,
        config=limits(),
        cost=COST,
        api=FREE,
        group=group,
        num_groups=num_groups,
        **changes,
    )


def test_a_sample_agrees_with_the_whole_fleet_within_its_error() -> None:
    whole, sampled = fleet(NUM_REPLICAS, 2), fleet(8, 3)
    assert (whole.num_simulated, sampled.num_simulated) == (NUM_REPLICAS, 24)
    assert whole.errors == {}
    right, found = whole.figures.rates(), sampled.figures.rates()
    for name in ("requests_per_second", "output_tokens_per_second", "busy", "hit_rate"):
        assert abs(found[name] - right[name]) <= 2 * sampled.errors[name] + 0.02 * right[name], name
        assert 0 < sampled.errors[name] < 0.2 * right[name], name
    for name in ("mean_pool_use", "first_token p50", "first_token p95", "end_to_end p50", "end_to_end p95"):
        # A small group has fewer idle replicas to choose from, so it is slower, and the sample errs on that side.
        assert -2 * sampled.errors[name] <= found[name] - right[name] <= 2 * sampled.errors[name] + 0.1 * right[name], (
            name
        )


def test_the_number_of_processes_does_not_change_the_figures() -> None:
    assert fleet(2, 2, num_processes=2) == fleet(2, 2)
