"""Measure Caravan and other servers under the same loads, in turn, and write docs/benchmarks.md.

`python -m benchmarks.compare PEERS` looks for the other servers in the folder PEERS (benchmarks/peers.md says how to
fill it). One server runs at a time; a round has each of them once, and there are three. Every run is added to a file of
results, so that a comparison can go on later; the page is of all that is in it. `--file FILE.gguf` compares Caravan
and llama.cpp, both of which serve that file, and writes a section of its own.
"""

import argparse
import asyncio
import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.comparison_page import write_page
from benchmarks.file_comparison_page import write_file_section
from benchmarks.machine import machine
from benchmarks.server_process import ServerFailed, running
from benchmarks.variants import Variant, file_variants, variants
from benchmarks.workloads import WORKLOADS, Workload, file_workloads
from caravan.cli.bench import BenchFailed
from caravan.cli.bench.report import Report
from caravan.cli.bench.run import Run, run_bench
from caravan.download.resolve import resolve_model

ROOT = Path(__file__).parent.parent
_WRITE_SECONDS = 300.0


def main() -> None:
    """Run the rounds, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("peers", type=Path, nargs="?", default=Path("peers"))
    parser.add_argument("--model", default="smollm2", help="model for Caravan")
    parser.add_argument("--file", type=Path, help="GGUF file that Caravan and llama.cpp serve, under loads of its own")
    parser.add_argument("--rounds", type=int, default=3, help="number of rounds; 0: only write the page")
    parser.add_argument("--only", default="", help="names of servers, or prefixes of names, separated by commas")
    parser.add_argument("--results", type=Path, help="default: results.json, or file_results.json with --file")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "benchmarks.md")
    parser.add_argument("--fresh", action="store_true", help="discard earlier results")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the server being measured is stopped, too
    file: Path | None = arguments.file
    if file is not None and not file.is_file():
        parser.error(f"{file} does not exist. `python -m benchmarks.shapes` writes one.")
    results_path: Path = arguments.results or ROOT / "benchmarks" / ("file_results.json" if file else "results.json")
    workloads = file_workloads(file.stat().st_size) if file else WORKLOADS
    if file is not None:
        known = file_variants(arguments.peers, file)
    else:
        known = variants(arguments.peers, str(resolve_model(arguments.model, print)))
    results: dict[str, Any] = {"runs": []}
    if results_path.exists() and not arguments.fresh:
        results = json.loads(results_path.read_text())
    here = machine()
    if results.setdefault("machine", here) != here:
        raise SystemExit(f"{results_path} is from another machine; use --fresh to discard it.")
    results["absent"] = [variant.name for variant in known if not variant.is_installed]
    wanted = tuple(arguments.only.split(",")) if arguments.only else ("",)
    chosen = [variant for variant in known if variant.is_installed and variant.name.startswith(wanted)]
    for name in results["absent"]:
        print(f"{name}: not installed")
    if file is not None and arguments.rounds:
        keep_packed_weights(chosen, results_path.with_suffix(".log"))
    for number in range(arguments.rounds):
        name_of_round = time.strftime("%Y-%m-%d %H:%M:%S")  # ratios are of runs of one round
        for variant in chosen:
            print(f"round {number + 1}: {variant.name}", end="", flush=True)
            try:
                result = measure(variant, workloads, results_path.with_suffix(".log"))
            except (ServerFailed, BenchFailed) as error:
                print(f": {error}")
                continue
            print("".join(f", {name} {figures['rate']:.0f}" for name, figures in result["workloads"].items()))
            if file is not None:
                result |= {"file": file.name, "file_bytes": file.stat().st_size, "package": variant.package}
            results["runs"].append(result | {"round": name_of_round})
            results_path.write_text(json.dumps(results, indent=1) + "\n")
    if not results["runs"]:
        raise SystemExit("There are no results.")
    if file is not None:
        write_file_section(results, arguments.page)
    else:
        write_page(results, known, arguments.page)
    print(f"Wrote {arguments.page}.")


def keep_packed_weights(chosen: Sequence[Variant], log: Path) -> None:
    """Start Caravan once and wait until its packed weights are in a file: writing them slows a server down."""
    for variant in chosen:
        if variant.kind == "caravan":
            with running(variant, log):
                wait_for_packed_weights(log)


def wait_for_packed_weights(log: Path) -> None:
    """Wait until a server's log says that its packed weights are in a file or will not be; at most two minutes."""
    end = time.monotonic() + _WRITE_SECONDS
    while not _is_written(log.read_text()) and time.monotonic() < end:
        time.sleep(0.1)


def _is_written(text: str) -> bool:
    """Return whether a server's log says that nothing is left to write; an engine that maps its weights packs none."""
    return "were packed" not in text or any(
        words in text for words in ("were written", "are not kept", "cannot be kept")
    )


def measure(variant: Variant, workloads: Sequence[Workload], log: Path) -> dict[str, Any]:
    """Start a server, run all loads, stop it; return the figures. Raises ServerFailed or BenchFailed."""
    figures: dict[str, Any] = {}
    seed = int(time.time())  # other prompts in each round, and under each load: a prompt that comes again is cached
    with running(variant, log) as server:
        for number, workload in enumerate(workloads):
            report = bench(workload, server.url, seed + number)
            rate = report.total_tokens_per_second if workload.counts_prompts else report.output_tokens_per_second
            figures[workload.name] = {"rate": rate} | asdict(report)
        peak_bytes = server.peak_bytes()
    return {
        "variant": variant.name,
        "version": _version(variant),
        "time": time.strftime("%Y-%m-%d %H:%M"),
        "first_token_seconds": server.first_token_seconds,
        "peak_bytes": peak_bytes,
        "workloads": figures,
    }


def bench(workload: Workload, url: str, seed: int) -> Report:
    """Run one load; return its report. Raises BenchFailed for a request that failed."""
    options = workload.options(url, seed)
    runs: list[Run] = []
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run_bench(options, runs, lambda _: None, lambda _: None))
    report = runs[0].report(options)
    if report.num_errors:
        raise BenchFailed(f"{workload.name}: {report.errors}")
    return report


def _version(variant: Variant) -> str:
    """Return the commit of ours, the version of another server's package."""
    if variant.kind == "caravan":
        command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=7"]
    else:
        python = next(
            (folder / "bin" / "python" for folder in variant.program.parents if _is_environment(folder)), None
        )
        code = f"from importlib.metadata import version; print(version({variant.package!r}))"
        command = [str(python or sys.executable), "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "unknown"


def _is_environment(folder: Path) -> bool:
    return (folder / "pyvenv.cfg").exists()


if __name__ == "__main__":
    main()
