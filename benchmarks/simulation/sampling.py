"""Samples of a fleet: groups of its replicas, each with its share of the arrivals.

A fleet of 1,000 replicas is 125 groups of 8 behind a router of their own; some of the groups are simulated. The figures
are those of all requests of the groups together, and the spread between the groups says how far they can be trusted.
"""

import functools
import math
import multiprocessing
import statistics
from array import array
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace

from benchmarks.simulation.api_cost import ApiCost
from benchmarks.simulation.arrivals import Load, thinned
from benchmarks.simulation.fleet import simulate
from benchmarks.simulation.journal import Figures, Journal
from benchmarks.simulation.router import Router, least_outstanding
from benchmarks.simulation.step_cost import StepCost
from caravan.scheduler.config import EngineConfig

GROUP = 8  # replicas
NUM_GROUPS = 4
TOTALS = (  # figures that grow with the number of replicas
    "num_requests",
    "num_rejected",
    "num_preemptions",
    "requests_per_second",
    "output_tokens_per_second",
    "prompt_tokens_per_second",
)


@dataclass(frozen=True, kw_only=True)
class FleetFigures:
    """The figures of a fleet. Rates and counts are those of the whole fleet."""

    figures: Figures
    errors: Mapping[str, float]  # by the names of Figures.rates: two standard errors; empty if nothing was sampled
    num_simulated: int  # replicas


def simulate_fleet(
    load: Load,
    *,
    num_replicas: int,
    config: EngineConfig,
    cost: StepCost,
    api: ApiCost,
    router: Router = least_outstanding,
    group: int = GROUP,
    num_groups: int = NUM_GROUPS,
    num_processes: int = 1,
) -> FleetFigures:
    """Return the figures of a fleet: of all its replicas, or of some groups if it has more replicas than those.

    The groups are simulated in `num_processes` processes; the figures do not depend on it.
    """
    arrivals = load.arrivals()
    if num_replicas <= group * num_groups:
        journal = simulate(
            arrivals,
            load.prompts(),
            config=config,
            cost=cost,
            api=api,
            num_replicas=num_replicas,
            router=router,
        )
        return FleetFigures(figures=journal.figures(), errors={}, num_simulated=num_replicas)
    parts = num_replicas / group
    run = functools.partial(simulate, config=config, cost=cost, api=api, num_replicas=group, router=router)
    samples = thinned(arrivals, parts, num_groups, load.seed)
    prompts = [load.prompts() for _ in samples]
    if num_processes > 1:
        with ProcessPoolExecutor(num_processes, multiprocessing.get_context("spawn")) as processes:
            journals = list(processes.map(run, samples, prompts))
    else:
        journals = list(map(run, samples, prompts))
    together = merged(journals).figures()
    rates = [journal.figures().rates() for journal in journals]
    errors = {
        name: 2 * statistics.stdev(one[name] for one in rates) / math.sqrt(num_groups)
        for name in rates[0]  # of the mean of the groups
    }
    return FleetFigures(
        figures=scaled(together, parts / num_groups),
        errors={name: error * (parts if name in TOTALS else 1.0) for name, error in errors.items()},
        num_simulated=group * num_groups,
    )


def scaled(figures: Figures, factor: float) -> Figures:
    """Return the figures of a fleet with `factor` times the replicas and requests."""
    changes = {name: getattr(figures, name) * factor for name in TOTALS}
    return replace(figures, **{name: round(n) if name.startswith("num_") else n for name, n in changes.items()})


def merged(journals: Sequence[Journal]) -> Journal:
    """Return one journal of runs that happened beside each other; request ids are those of the whole load."""
    whole = Journal(sum(journal.num_replicas for journal in journals), gaps=array("d"))
    for journal in journals:
        assert not whole.journeys.keys() & journal.journeys.keys(), "a request is in one group"
        whole.journeys |= journal.journeys
        whole.gaps.extend(journal.gaps)
        whole.num_rejected += journal.num_rejected
        whole.num_steps += journal.num_steps
        whole.step_seconds += journal.step_seconds
        whole.num_preemptions += journal.num_preemptions
        whole.pool_seconds += journal.pool_seconds
        whole.max_pool_use = max(whole.max_pool_use, journal.max_pool_use)
        whole.num_queries += journal.num_queries
        whole.num_hits += journal.num_hits
    return whole
