"""The section of a comparison in which Caravan and llama.cpp serve the same file."""

import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.page_sections import with_section
from benchmarks.workloads import file_workloads

FILE_HEADING = "The same file in both servers"
_Run = dict[str, Any]
_Measure = tuple[str, Callable[[_Run], float], str, bool]  # column, value of a run, format, whether more is better


def write_file_section(results: dict[str, Any], page: Path) -> None:
    """Write the section into the page, which keeps all its others."""
    old = page.read_text() if page.exists() else "# Benchmarks\n"
    page.write_text(with_section(old, FILE_HEADING, file_section(results)))


def file_section(results: dict[str, Any]) -> str:
    """Return the section: a table for each file, medians of the rounds, and ratios of each round."""
    machine, runs = results["machine"], results["runs"]
    files = sorted({run["file"] for run in runs}, key=lambda name: (_bytes_of(runs, name), name))
    packages = sorted({f"{run['package']} {run['version']}" for run in runs})
    parts = [
        "Caravan with its default settings, but without speculation, and llama.cpp with 32 slots and two threads "
        "serve the same GGUF file, one server at a time, in turn. The files have the shapes of real models and random "
        "weights (`python -m benchmarks.shapes`). Written by `python -m benchmarks.compare PEERS --file FILE.gguf`: "
        f"{', '.join(packages)}. {machine['processor']}; {machine['cores']} cores; {machine['features']}; "
        f"{machine['memory']}; {machine['system']}.",
        "Streams and prompts in tokens a second (output tokens; of prompts those of the prompt, too). Ready: from the "
        "command to the first token, with a warm file cache. Memory: the sum of the peaks of all processes, in which "
        "shared memory counts twice. Medians of the rounds, with the least and the most below; the last line is how "
        "many times better Caravan is, the median of the ratios of each round.",
    ]
    if any(run["package"] == "xllamacpp" for run in runs) and "avx512f" in machine["features"]:
        parts.append("xllamacpp is built for AVX2 only; this processor has more, which Caravan uses.")
    parts += [f"### {name}, {_bytes_of(runs, name) / 1e9:.2f} GB\n\n{_table(runs, name)}" for name in files]
    return "\n\n".join(parts)


def _bytes_of(runs: list[_Run], name: str) -> int:
    return max(int(run["file_bytes"]) for run in runs if run["file"] == name)


def _measures(file_bytes: int) -> list[_Measure]:
    measures: list[_Measure] = []
    for workload in file_workloads(file_bytes):
        if workload.is_first_token:
            measures.append((workload.name, partial(_first_token, workload.name), "{:.2f} s", False))
        else:
            measures.append((workload.name, partial(_rate, workload.name), "{:,.1f}", True))
    measures.append(("ready", lambda run: float(run["first_token_seconds"]), "{:.1f} s", False))
    measures.append(("memory", lambda run: run["peak_bytes"] / 2**30, "{:.2f} GiB", False))
    return measures


def _first_token(workload: str, run: _Run) -> float:
    return float(run["workloads"][workload]["first_token"]["p50"])


def _rate(workload: str, run: _Run) -> float:
    return float(run["workloads"][workload]["rate"])


def _table(runs: list[_Run], name: str) -> str:
    measures = _measures(_bytes_of(runs, name))
    of_file = [run for run in runs if run["file"] == name]
    rounds = {
        server: {run["round"]: run for run in of_file if run["variant"] == server}
        for server in sorted({run["variant"] for run in of_file})
    }
    lines = [["", *(column for column, _, _, _ in measures)], ["---"] * (len(measures) + 1)]
    for server, by_round in rounds.items():
        lines.append(
            [server, *(_cell([value(run) for run in by_round.values()], form) for _, value, form, _ in measures)]
        )
    if len(rounds) == 2:
        ours, theirs = rounds.values()
        common = [number for number in ours if number in theirs]
        cells = []
        for _, value, _, is_more_better in measures:
            ratios = [value(ours[number]) / value(theirs[number]) for number in common]
            ratios = ratios if is_more_better else [1 / ratio for ratio in ratios]
            cells.append(f"**{statistics.median(ratios):.2f}**" if ratios else "")
        lines.append([f"times better, rounds: {len(common)}", *cells])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(values: list[float], form: str) -> str:
    spread = f" <br>{form.format(min(values))} to {form.format(max(values))}" if len(values) > 1 else ""
    return f"{form.format(statistics.median(values))}{spread}"
