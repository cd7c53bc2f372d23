"""Reports of simulations, as tables of Markdown that a terminal can show as they are."""

from collections.abc import Sequence

from benchmarks.simulation.journal import Figures, Quantiles
from benchmarks.simulation.sampling import FleetFigures
from benchmarks.simulation.search import Trial
from caravan.scheduler.config import EngineConfig


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table whose columns are aligned; all but the first to the right."""
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        first, *others = zip(cells, widths, strict=True)
        texts = [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]
        return f"| {' | '.join(texts)} |"

    rule = "|".join(["-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:])])
    return "\n".join([line(header), f"|{rule}|", *map(line, rows)])


def figures_table(found: FleetFigures) -> str:
    """Return the figures of one fleet, with their errors if it was sampled."""
    figures, errors = found.figures, found.errors

    def number(name: str, form: str, value: float, factor: float = 1.0, unit: str = "") -> str:
        error = f" ± {errors[name] * factor:{form}}" if name in errors else ""
        return f"{value * factor:{form}}{error}{unit}"

    def quantiles(name: str, values: Quantiles) -> list[str]:
        parts = {"p50": values.p50, "p95": values.p95, "p99": values.p99}
        return [number(f"{name} {part}", ",.1f", value, 1000) for part, value in parts.items()]

    times = table(
        ["milliseconds", "p50", "p95", "p99"],
        [
            ["first token", *quantiles("first_token", figures.first_token)],
            ["between tokens", *quantiles("between_tokens", figures.between_tokens)],
            ["end to end", *quantiles("end_to_end", figures.end_to_end)],
        ],
    )
    rates = table(
        ["figure", "value"],
        [
            ["requests", number("num_requests", ",.0f", figures.num_requests)],
            ["rejected: longer than max_model_len", f"{figures.num_rejected:,}"],
            ["seconds", f"{figures.seconds:,.1f}"],
            ["requests a second", number("requests_per_second", ",.2f", figures.requests_per_second)],
            ["output tokens a second", number("output_tokens_per_second", ",.0f", figures.output_tokens_per_second)],
            ["prompt tokens a second", number("prompt_tokens_per_second", ",.0f", figures.prompt_tokens_per_second)],
            ["preemptions", number("num_preemptions", ",.0f", figures.num_preemptions)],
            ["pool in use, mean", number("mean_pool_use", ".1f", figures.mean_pool_use, 100, " %")],
            ["pool in use, most", f"{100 * figures.max_pool_use:.1f} %"],
            ["prefix hits, of prompt tokens", number("hit_rate", ".1f", figures.hit_rate, 100, " %")],
            ["replicas busy", number("busy", ".1f", figures.busy, 100, " %")],
            ["replicas simulated", f"{found.num_simulated:,}"],
        ],
    )
    return f"{rates}\n\n{times}"


def trials_table(trials: Sequence[Trial]) -> str:
    """Return a line for each fleet that was tried."""
    rows = [
        [
            f"{trial.num_replicas:,}",
            f"{trial.config.num_tokens:,}",
            f"{trial.config.max_batch_tokens:,}",
            f"{trial.config.max_num_seqs:,}",
            *brief(trial.found.figures),
            "yes" if trial.is_met else "no",
        ]
        for trial in trials
    ]
    header = ["replicas", "pool, tokens", "budget", "sequences", *BRIEF_HEADER, "in time"]
    return table(header, rows)


BRIEF_HEADER = (
    "tokens/s",
    "first token p50 / p95 / p99, ms",
    "between tokens p50 / p95 / p99, ms",
    "preemptions",
    "pool",
    "hits",
    "busy",
)


def brief(figures: Figures) -> list[str]:
    """Return the figures of a run as cells under BRIEF_HEADER."""
    return [
        f"{figures.output_tokens_per_second:,.0f}",
        _milliseconds(figures.first_token),
        _milliseconds(figures.between_tokens),
        f"{figures.num_preemptions:,}",
        f"{100 * figures.mean_pool_use:.0f} %",
        f"{100 * figures.hit_rate:.0f} %",
        f"{100 * figures.busy:.0f} %",
    ]


def limits_text(config: EngineConfig) -> str:
    """Return the limits of a replica in one line."""
    return (
        f"a pool of {config.num_tokens:,} tokens, {config.max_batch_tokens:,} tokens in a step, "
        f"{config.max_num_seqs:,} sequences"
    )


def _milliseconds(quantiles: Quantiles) -> str:
    return " / ".join(f"{1000 * value:,.0f}" for value in (quantiles.p50, quantiles.p95, quantiles.p99))
