"""The figures of docs/benchmarks.md, drawn from its own table: `python -m benchmarks.comparison_figures [PAGE]`."""

import re
import sys
from collections.abc import Mapping
from pathlib import Path

from docs.figures.drawing import BLUE, ORANGE, WIDTH, box, figure, text

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
_CELL = re.compile(r"\*\*([\d,]+)\*\*")  # a median
_LEFT, _ROW = 136, 21  # where bars begin, and the height of a row
_NUM_STREAMED = 3  # columns that count output tokens; the others count those of prompts, too

Rates = dict[str, dict[str, int]]  # by workload, then by server


def write_figures(page: Path) -> None:
    """Write benchmark-streams.svg and benchmark-prompts.svg into figures/ beside the page.

    Raises ValueError if the page has no table of rates.
    """
    rates = rates_of(page.read_text("utf-8"))
    names = list(rates)
    figures = page.parent / "figures"
    figures.mkdir(exist_ok=True)
    for name, some in (("streams", names[:_NUM_STREAMED]), ("prompts", names[_NUM_STREAMED:])):
        unit = "output tokens/s" if name == "streams" else "total tokens/s"
        (figures / f"benchmark-{name}.svg").write_text(bars({one: rates[one] for one in some}, unit), "utf-8")


def rates_of(page: str) -> Rates:
    """Return the medians in the section "Tokens a second"."""
    section = page.partition("\n## Tokens a second\n")[2].partition("\n## ")[0]
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("|")]
    if len(rows) < 3:
        raise ValueError("The page has no table of tokens a second.")
    workloads = [cell.strip() for cell in rows[0][1:]]
    rates: Rates = {workload: {} for workload in workloads}
    for name, *cells in rows[2:]:
        for workload, cell in zip(workloads, cells, strict=True):
            found = _CELL.search(cell)
            if not found:
                raise ValueError(f"{name.strip()} has no median for {workload}.")
            rates[workload][name.strip()] = int(found[1].replace(",", ""))
    return rates


def bars(rates: Mapping[str, Mapping[str, int]], unit: str) -> str:
    """Return a figure with bars for each workload, Caravan's in another colour."""
    parts, y = [text(0, 14, unit)], 24.0
    for workload, by_server in rates.items():
        parts.append(text(0, y + 15, workload, is_bold=True))
        y += 24
        room = WIDTH - _LEFT - 46  # for the number at the end of the longest bar
        for server, rate in by_server.items():
            length = room * rate / max(by_server.values())
            colour = ORANGE if server.startswith("Caravan") else BLUE
            parts.append(text(_LEFT - 6, y + 15, _short(server), "end"))
            parts.append(box(_LEFT, y + 3, length, _ROW - 6, colour, 0.75))
            parts.append(text(_LEFT + length + 5, y + 15, f"{rate:,}"))
            y += _ROW
        y += 14
    return figure(y - 12, parts)


def _short(server: str) -> str:
    """Return a name that fits beside the bars."""
    return server.replace(" GenAI", "").replace(" weights", "")


if __name__ == "__main__":
    write_figures(Path(sys.argv[1]) if len(sys.argv) > 1 else PAGE)
