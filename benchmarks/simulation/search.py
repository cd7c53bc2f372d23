"""Search: the smallest fleet whose first tokens come in time."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from benchmarks.simulation.api_cost import ApiCost
from benchmarks.simulation.arrivals import Load
from benchmarks.simulation.fleet import simulate
from benchmarks.simulation.router import Router, least_outstanding
from benchmarks.simulation.sampling import GROUP, NUM_GROUPS, FleetFigures, simulate_fleet
from benchmarks.simulation.step_cost import StepCost
from caravan.cli.bench.workload import PlannedRequest
from caravan.scheduler.config import EngineConfig

NUM_SATURATING = 256  # requests that arrive at once
GROWTH = 1.25  # of the number of replicas from one trial to the next


@dataclass(frozen=True)
class Trial:
    """One fleet that was simulated."""

    config: EngineConfig
    num_replicas: int
    found: FleetFigures
    is_met: bool  # the target


@dataclass(frozen=True, kw_only=True)
class Target:
    """A bound on the 95th percentile of the first token, and the limits of the search."""

    first_token_seconds: float
    max_replicas: int | None = None  # None: five times what the rate of a saturated replica asks for
    group: int = GROUP
    num_groups: int = NUM_GROUPS
    num_processes: int = 1


def saturated_rate(load: Load, config: EngineConfig, cost: StepCost, api: ApiCost) -> float:
    """Return how many requests a second one replica completes if the first ones of a load all arrive at once."""
    planned = [PlannedRequest(one.prompt_tokens, one.output_tokens, 0.0) for one in load.planned[:NUM_SATURATING]]
    burst = Load(
        planned=planned,
        shared_prefix_tokens=load.shared_prefix_tokens,
        num_prefixes=load.num_prefixes,
        seed=load.seed,
    )
    return simulate(burst.arrivals(), burst.prompts(), config=config, cost=cost, api=api).figures().requests_per_second


def search(
    load: Load,
    configs: Sequence[EngineConfig],
    target: Target,
    *,
    cost: StepCost,
    api: ApiCost,
    router: Router = least_outstanding,
) -> Iterator[Trial]:
    """Yield every fleet that is tried; for each configuration, until its smallest fleet is known.

    More replicas are taken to be no slower. The first number comes from the rate of one saturated replica.
    """
    last = load.planned[-1].arrival_seconds or 0.0
    rate = len(load.planned) / last if last else 0.0
    for config in configs:
        saturated = saturated_rate(load, config, cost, api)
        first = max(int(0.8 * rate / saturated), 1) if saturated else 1
        most = target.max_replicas or 5 * first + 3  # with more, requests are alone, and no faster

        def attempt(num_replicas: int, config: EngineConfig = config) -> Trial:
            found = simulate_fleet(
                load,
                num_replicas=num_replicas,
                config=config,
                cost=cost,
                api=api,
                router=router,
                group=target.group,
                num_groups=target.num_groups,
                num_processes=target.num_processes,
            )
            is_met = found.figures.num_requests > 0 and found.figures.first_token.p95 <= target.first_token_seconds
            return Trial(config, num_replicas, found, is_met)

        yield from smallest(attempt, min(first, most), most)


def smallest(attempt: Callable[[int], Trial], first: int, most: int) -> Iterator[Trial]:
    """Yield trials, from `first` replicas on, until the smallest number that meets the target is among them.

    If `most` replicas miss it, that trial is the last one.
    """
    missed, met = 0, most + 1  # the numbers between them are open
    number = first
    while missed + 1 < met:
        trial = attempt(number)
        yield trial
        if trial.is_met:
            met = number
            number = min(int(number / GROWTH), met - 1) if missed == 0 else (missed + met) // 2
        else:
            missed = number
            number = min(max(int(number * GROWTH), number + 1), most) if met > most else (missed + met) // 2
        number = max(number, 1)


def best(trials: Sequence[Trial]) -> Trial | None:
    """Return the trial with the fewest replicas that meets the target, of those the smallest pool, then the fastest."""
    met = [trial for trial in trials if trial.is_met]
    return min(
        met,
        key=lambda trial: (trial.num_replicas, trial.config.num_blocks, trial.found.figures.first_token.p95),
        default=None,
    )


def combinations(
    config: EngineConfig, num_blocks: Sequence[int], max_batch_tokens: Sequence[int], max_num_seqs: Sequence[int]
) -> list[EngineConfig]:
    """Return a configuration for each combination of limits. Raises ValueError if one contradicts itself."""
    return [
        EngineConfig(
            num_blocks=blocks,
            block_size=config.block_size,
            max_batch_tokens=tokens,
            max_num_seqs=seqs,
            max_model_len=config.max_model_len,
            max_inter_token_seconds=config.max_inter_token_seconds,
            is_shared=config.is_shared,
        )
        for blocks, tokens, seqs in itertools.product(num_blocks, max_batch_tokens, max_num_seqs)
    ]
