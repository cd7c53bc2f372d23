"""The plot of one or more runs. matplotlib is imported only if a plot is requested."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from caravan.cli.bench import BenchFailed
from caravan.cli.bench.run import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SUFFIXES = (".png", ".svg", ".pdf")


def check_plot(path: Path) -> None:
    """Raise BenchFailed if the plot cannot be written; called before the measurement."""
    if path.suffix not in SUFFIXES:
        raise BenchFailed(f"--plot {path}: the name must end in {', '.join(SUFFIXES)}.")
    try:
        import matplotlib  # noqa: F401  # only whether it is there
    except ImportError:
        raise BenchFailed("--plot needs matplotlib: pip install 'caravan-llm[bench]'.") from None


def write_plot(path: Path, runs: Sequence[Run]) -> None:
    """Draw the cumulative distribution of first-token times, gaps between tokens and latencies, a line for each run."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4), layout="constrained")
    axes = figure.subplots(1, 3, sharey=True)
    for run in runs:
        good = [measurement for measurement in run.measurements if measurement.error is None]
        firsts = [value for measurement in good if (value := measurement.first_token_seconds) is not None]
        _draw(axes[0], "first token", firsts, run.load)
        _draw(axes[1], "between tokens", [gap for measurement in good for gap in measurement.gaps], run.load)
        _draw(axes[2], "end to end", [measurement.seconds for measurement in good], run.load)
    axes[0].set_ylabel("share")
    if any(axes[2].get_legend_handles_labels()):
        axes[2].legend(loc="lower right", fontsize="small")
    figure.savefig(path)


def _draw(axes: "Axes", title: str, seconds: Sequence[float], label: str) -> None:
    axes.set_title(title)
    axes.set_xlabel("milliseconds")
    axes.grid(alpha=0.3)
    if seconds:
        axes.ecdf([value * 1000 for value in seconds], label=label)
