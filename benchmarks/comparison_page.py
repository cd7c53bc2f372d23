"""The page that shows a comparison: medians, ratios of each round, and figures."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.comparison_figures import write_figures
from benchmarks.file_comparison_page import FILE_HEADING
from benchmarks.page_sections import with_sections_of
from benchmarks.variants import Variant
from benchmarks.workloads import WORKLOADS

_Run = dict[str, Any]
_LATENCIES = ("first_token", "between_tokens")
KEPT_HEADINGS = (FILE_HEADING, "What was asked of it and what it reaches")  # written by others


def write_page(results: dict[str, Any], known: Sequence[Variant], page: Path) -> None:
    """Write the page and its figures beside it; a server without results is listed as such."""
    rounds = {variant.name: [run for run in results["runs"] if run["variant"] == variant.name] for variant in known}
    measured = [variant for variant in known if rounds[variant.name]]
    machine = results["machine"]
    parts = [
        "# Benchmarks",
        "Caravan beside other servers on CPUs, each with its best settings ([benchmarks/variants.py]"
        "(../benchmarks/variants.py); Caravan without speculation, which random prompts would flatter), the same "
        "weights, one server at a time, in turn, and the same client (`caravan bench`). This page is written by "
        "`make compare PEERS=FOLDER`; [benchmarks/peers.md](../benchmarks/peers.md) says how to fill the folder.",
        f"{machine['processor']}; {machine['cores']} cores; {machine['features']}; {machine['memory']}; "
        f"{machine['system']}. The model is the default one, SmolLM2-135M-Instruct. Rounds on other processors, and "
        "what was missed there, are in [benchmarks/LOG.md](../benchmarks/LOG.md).",
        _versions(measured, rounds, results["absent"]),
        "## Tokens a second\n\nStreamed over HTTP, greedy, prompts of random tokens; 128 tokens in and 128 out unless "
        "it is said otherwise. The first three columns count output tokens, the others those of prompts, too. Medians "
        "of the rounds, with the least and the most below.",
        _rates(measured, rounds),
        "![Output tokens a second](figures/benchmark-streams.svg)",
        "![Total tokens a second](figures/benchmark-prompts.svg)",
        "## Ratios\n\nCaravan's rate over the best rate of any other server in the same round, and over the best "
        "among those in 16 bits; medians of the rounds that have all of them.",
        _ratios(measured, rounds),
        "## Latency\n\nIn milliseconds, p50 / p99, medians of the rounds: the first token, and between tokens.",
        _latencies(measured, rounds),
        "## Start and memory\n\nFrom the command to the first token, with a warm file cache and whatever the server "
        "keeps from earlier starts (the least of the rounds); the sum of the peak memory of its processes.",
        _costs(measured, rounds),
    ]
    old = page.read_text() if page.exists() else ""
    new = "\n\n".join(part for part in parts if part) + "\n"
    page.write_text(with_sections_of(new, old, KEPT_HEADINGS))
    write_figures(page)


def _versions(measured: Sequence[Variant], rounds: dict[str, list[_Run]], absent: Sequence[str]) -> str:
    rows = [
        [
            variant.name,
            variant.package or variant.kind,
            ", ".join(sorted({run["version"] for run in rounds[variant.name]})),
            variant.dtype,
            str(len(rounds[variant.name])),
            rounds[variant.name][-1]["time"],
        ]
        for variant in measured
    ]
    table = _table(["server", "package", "version or commit", "compared as", "rounds", "last run"], rows)
    return table + "".join(f"\n\n{name}: not installed." for name in absent)


def _rates(measured: Sequence[Variant], rounds: dict[str, list[_Run]]) -> str:
    def cell(variant: Variant, name: str) -> str:
        rates = [run["workloads"][name]["rate"] for run in rounds[variant.name]]
        spread = f" <br>{min(rates):,.0f} to {max(rates):,.0f}" if len(rates) > 1 else ""
        return f"**{statistics.median(rates):,.0f}**{spread}"

    names = [workload.name for workload in WORKLOADS]
    return _table(
        ["server", *names], [[variant.name, *(cell(variant, name) for name in names)] for variant in measured]
    )


def _ratios(measured: Sequence[Variant], rounds: dict[str, list[_Run]]) -> str:
    ours = [variant for variant in measured if variant.kind == "caravan"]
    others = [variant for variant in measured if variant.kind != "caravan"]
    if not ours or not others:
        return ""
    rows = []
    for variant in ours:
        rows.append([variant.name, "the best", *_row_of_ratios(variant, others, rounds)])
        same = [other for other in others if other.dtype == variant.dtype]
        if same:
            rows.append([variant.name, f"the best in {variant.dtype}", *_row_of_ratios(variant, same, rounds)])
    return _table(["", "over", *(workload.name for workload in WORKLOADS)], rows)


def _row_of_ratios(variant: Variant, others: Sequence[Variant], rounds: dict[str, list[_Run]]) -> list[str]:
    """Return a ratio for each workload, and which server was the best."""
    cells = []
    for workload in WORKLOADS:

        def rates(one: Variant, name: str = workload.name) -> dict[str, float]:
            return {run["round"]: run["workloads"][name]["rate"] for run in rounds[one.name]}

        own, other_rates = rates(variant), [rates(other) for other in others]
        common = [name for name in own if all(name in one for one in other_rates)]
        if not common:
            cells.append("")
            continue
        ratios = [own[name] / max(one[name] for one in other_rates) for name in common]
        best = max(others, key=lambda other: statistics.median(rates(other).values()))
        cells.append(f"**{statistics.median(ratios):.2f}** <br>{best.name}")
    return cells


def _latencies(measured: Sequence[Variant], rounds: dict[str, list[_Run]]) -> str:
    def cell(variant: Variant, name: str) -> str:
        def median(kind: str, percent: str) -> float:
            return 1000 * float(
                statistics.median(run["workloads"][name][kind][percent] for run in rounds[variant.name])
            )

        first, between = ([median(kind, percent) for percent in ("p50", "p99")] for kind in _LATENCIES)
        return f"{first[0]:,.0f} / {first[1]:,.0f} <br>{between[0]:.1f} / {between[1]:,.0f}"

    names = [workload.name for workload in WORKLOADS]
    return _table(
        ["server", *names], [[variant.name, *(cell(variant, name) for name in names)] for variant in measured]
    )


def _costs(measured: Sequence[Variant], rounds: dict[str, list[_Run]]) -> str:
    rows = []
    for variant in measured:
        seconds = min(run["first_token_seconds"] for run in rounds[variant.name])
        peak_bytes = statistics.median(run["peak_bytes"] for run in rounds[variant.name])
        rows.append([variant.name, f"{seconds:.1f} s", f"{peak_bytes / 2**30:.1f} GiB"])
    return _table(["server", "start to first token", "peak memory"], rows)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
