"""Check: a real engine and its simulation under the same arrivals, none of which the costs were fitted to."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from benchmarks.simulation.api_cost import ApiCost
from benchmarks.simulation.arrivals import Load, cut, poisson, trace
from benchmarks.simulation.calibration import measure_cost
from benchmarks.simulation.cost_file import CostFile
from benchmarks.simulation.fleet import simulate
from benchmarks.simulation.journal import Figures, Journal
from benchmarks.simulation.recorder import record
from benchmarks.simulation.report import table
from benchmarks.simulation.search import saturated_rate
from benchmarks.simulation.step_cost import median_error
from caravan.cli.bench.lengths import parse_lengths
from caravan.cli.bench.workload import PlannedRequest
from caravan.scheduler.engine import Engine

HEADING = "Measured error"
LEAST_REQUESTS = 20  # of a load: with fewer, the 95th percentile is the slowest request
TRACE_LENGTHS = (600, 60)  # prompts and outputs of the trace are cut to these


@dataclass(frozen=True)
class CheckLoad:
    """A load and which part of the saturated rate it is.

    At half of it, a machine that is 10 % slower for a minute makes a first token about 20 % later; at 75 % of it, half
    as late again, since the waiting time of a queue grows as 1 / (1 - load).
    """

    name: str
    prompt: str
    output: str
    part: float
    shared_prefix: int = 0


LOADS = (
    CheckLoad("short chats", "96*1.6", "48*1.5", 0.5),
    CheckLoad("long prompts", "400-1500", "16-48", 0.5),
    CheckLoad("a shared prefix", "32-256", "32-96", 0.5, shared_prefix=384),
)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One load, measured and simulated."""

    name: str
    part: float  # of the saturated rate
    measured: Figures
    simulated: Figures
    step_error: float | None  # of the sum of all measured steps, predicted; None: the steps were not seen

    @property
    def errors(self) -> dict[str, float]:
        """(simulated - measured) / measured of the figures that count."""
        pairs = {
            "throughput": (self.simulated.output_tokens_per_second, self.measured.output_tokens_per_second),
            "first token p95": (self.simulated.first_token.p95, self.measured.first_token.p95),
            "end to end p50": (self.simulated.end_to_end.p50, self.measured.end_to_end.p50),
        }
        return {name: found / right - 1 for name, (found, right) in pairs.items()}


def check_loads(
    costs: CostFile, num_requests: int, seed: int, trace_path: Path | None
) -> list[tuple[str, float, Load]]:
    """Return names, parts of the saturated rate, and loads of about num_requests each.

    A trace takes the place of the first load.

    Raises OSError or ValueError.
    """
    found = []
    for number, one in enumerate(LOADS):
        room = costs.config.max_model_len - one.shared_prefix - 1
        prompt, output = parse_lengths(one.prompt), parse_lengths(one.output)

        def load(planned: Sequence[PlannedRequest], shared: int = one.shared_prefix, at: int = seed + number) -> Load:
            return Load(planned=planned, shared_prefix_tokens=shared, seed=at)

        if number == 0 and trace_path is not None:
            planned = cut(trace(trace_path), min(TRACE_LENGTHS[0], room), TRACE_LENGTHS[1])
            rate = one.part * saturated_rate(load(planned), costs.config, costs.cost, costs.api)
            last = planned[-1].arrival_seconds or 0.0
            planned = cut(
                trace(trace_path, time_scale=len(planned) / last / rate if last else 1.0, seconds=num_requests / rate),
                min(TRACE_LENGTHS[0], room),
                TRACE_LENGTHS[1],
            )
            found.append(
                (f"{trace_path.stem}, cut to {TRACE_LENGTHS[0]} + {TRACE_LENGTHS[1]}", one.part, load(planned))
            )
            continue
        probe = load(cut(poisson(prompt, output, 1.0, 256.0, seed + number), room, None))
        rate = one.part * saturated_rate(probe, costs.config, costs.cost, costs.api)
        planned = cut(poisson(prompt, output, rate, num_requests / rate, seed + number), room, None)
        found.append((one.name, one.part, load(planned)))
    return found


def calibrated_again(
    engine: Engine, costs: CostFile, seconds: float, seed: int, report: Callable[[str], object]
) -> CostFile:
    """Return the costs of a step as they are now: a machine that is shared is faster or slower a minute later.

    They are measured with two loads of `seconds` seconds after a burst, drawn with a seed that no check has.
    """
    cost, steps = measure_cost(engine, seconds=seconds, seed=seed, report=lambda _: None)
    ratio = sum(cost.seconds(step.load) for step in steps) / sum(costs.cost.seconds(step.load) for step in steps)
    report(f"A step takes {ratio:.3f} times what it took in the calibration before.")
    error = median_error(cost, steps)
    return msgspec.structs.replace(costs, cost=cost, num_steps=len(steps), median_step_error=error)


def compare(engine: Engine, costs: CostFile, name: str, part: float, load: Load) -> Comparison:
    """Run a load on an engine in this process, and simulate it without an API process."""
    journal, steps = record(engine, load.arrivals(), load.prompts())
    predicted = sum(costs.cost.seconds(step.load) for step in steps)
    step_error = predicted / sum(step.seconds for step in steps) - 1
    return comparison(f"{name}, in process", part, journal, simulated(costs, load, ApiCost()), step_error)


def simulated(costs: CostFile, load: Load, api: ApiCost) -> Journal:
    """Return what one replica makes of a load."""
    return simulate(load.arrivals(), load.prompts(), config=costs.config, cost=costs.cost, api=api)


def comparison(name: str, part: float, measured: Journal, simulation: Journal, step_error: float | None) -> Comparison:
    """Return the comparison of two runs; every request has ended in both."""
    for journal in (measured, simulation):
        assert journal.figures().num_requests == len(journal.journeys), "a request was lost"
    return Comparison(
        name=name, part=part, measured=measured.figures(), simulated=simulation.figures(), step_error=step_error
    )


def comparisons_table(comparisons: Sequence[Comparison]) -> str:
    """Return a line for each load."""
    return table(
        [
            "load",
            "of saturation",
            "requests",
            "tokens/s, real",
            "simulated",
            "error",
            "first token p95, real",
            "simulated",
            "error",
            "end to end p50, error",
            "all steps, error",
        ],
        [
            [
                one.name,
                f"{100 * one.part:.0f} %",
                f"{one.measured.num_requests}",
                f"{one.measured.output_tokens_per_second:.1f}",
                f"{one.simulated.output_tokens_per_second:.1f}",
                percent(one.errors["throughput"]),
                f"{1000 * one.measured.first_token.p95:,.0f} ms",
                f"{1000 * one.simulated.first_token.p95:,.0f} ms",
                percent(one.errors["first token p95"]),
                percent(one.errors["end to end p50"]),
                "" if one.step_error is None else percent(one.step_error),
            ]
            for one in comparisons
        ],
    )


def percent(part: float) -> str:
    """Return a part as a signed percentage."""
    return f"{100 * part:+.1f} %"


def section(costs: CostFile, comparisons: Sequence[Comparison], measured: str) -> str:
    """Return the body of the section of docs/scaling.md."""
    machine = costs.machine
    return "\n".join(
        [
            "Written by `python -m benchmarks.simulate check --page`. Each load was run by a real engine and simulated "
            "with the same arrivals;",
            "no load was fitted: the costs were measured with other requests right before each load. `of saturation` "
            "is the arrival rate",
            "as a part of the rate at which one simulated replica completes a burst.",
            "`all steps` compares the sum of the real steps with the prediction for the same steps: what it is off is "
            "the cost model's error",
            "or a machine that is faster or slower than it was during the calibration.",
            "",
            f"{costs.model}, {costs.weights}; calibrated {costs.measured}, checked {measured}; "
            f"{machine['processor']}; {machine['cores']} cores; {machine['features']}; {machine['memory']}; "
            f"{machine['system']}. Median error of a fitted step: {100 * costs.median_step_error:.1f} % "
            f"of {costs.num_steps:,} steps.",
            "",
            comparisons_table(comparisons),
        ]
    )
