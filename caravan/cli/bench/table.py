"""Tables of reports for a terminal."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from caravan.cli.bench.report import Percentiles, Report


def print_reports(console: Console, reports: Sequence[Report]) -> None:
    """Print throughput, latencies and errors; a row for each load."""
    console.print(_throughput(reports), _latencies(reports))
    for report in reports:
        for kind, count in report.errors.items():
            said = f": {report.error_texts[kind]}" if report.error_texts[kind] else ""
            console.print(f"{report.load}: {count} failed, {kind}{said}", style="red", markup=False, highlight=False)
        if report.max_delay_seconds > 0.05:
            late = (
                f"{report.load}: a request was sent {report.max_delay_seconds * 1000:.0f} ms late; latencies count it."
            )
            console.print(late, markup=False, highlight=False)


def _throughput(reports: Sequence[Report]) -> Table:
    table = Table(title="Throughput", title_justify="left")
    table.add_column("load")
    for name in ("requests", "errors", "seconds", "requests/s", "output tokens/s", "total tokens/s"):
        table.add_column(name, justify="right")
    has_goodput = any(report.goodput is not None for report in reports)
    if has_goodput:
        table.add_column("within bounds/s", justify="right")
    table.add_column("client µs/token", justify="right")
    for report in reports:
        table.add_row(
            report.load,
            str(report.num_requests),
            str(report.num_errors),
            f"{report.seconds:.1f}",
            f"{report.requests_per_second:.2f}",
            f"{report.output_tokens_per_second:.1f}",
            f"{report.total_tokens_per_second:.1f}",
            *([f"{report.goodput or 0:.2f}"] if has_goodput else []),
            f"{report.client_microseconds_per_token:.1f}",
        )
    return table


def _latencies(reports: Sequence[Report]) -> Table:
    table = Table(title="Latency in milliseconds: p50 / p90 / p99", title_justify="left")
    for name in ("load", "first token", "between tokens", "per output token", "end to end"):
        table.add_column(name, justify="left" if name == "load" else "right")
    for report in reports:
        figures = (report.first_token, report.between_tokens, report.per_token, report.end_to_end)
        table.add_row(report.load, *map(_milliseconds, figures))
    return table


def _milliseconds(figures: Percentiles | None) -> str:
    if figures is None:
        return "-"
    return " / ".join(
        f"{seconds * 1000:.{0 if seconds >= 0.1 else 1}f}" for seconds in (figures.p50, figures.p90, figures.p99)
    )
