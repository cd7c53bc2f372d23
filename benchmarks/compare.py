"""Measure Caravan and other servers under the same loads, in turn, and write docs/benchmarks.md.

`python -m benchmarks.compare PEERS` looks for the other servers in the folder PEERS (benchmarks/peers.md says how to
fill it). One server runs at a time; a round has each of them once, and there are three. Every run is added to a file of
results, so that a comparison can go on later; the page is of all that is in it.
"""

import argparse
import asyncio
import json
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.comparison_page import write_page
from benchmarks.machine import machine
from benchmarks.server_process import ServerFailed, running
from benchmarks.variants import Variant, variants
from benchmarks.workloads import WORKLOADS
from caravan.cli.bench import BenchFailed
from caravan.cli.bench.run import Run, run_bench
from caravan.download.resolve import resolve_model

ROOT = Path(__file__).parent.parent


def main() -> None:
    """Run the rounds, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("peers", type=Path, nargs="?", default=Path("peers"))
    parser.add_argument("--model", default="smollm2", help="model for Caravan")
    parser.add_argument("--rounds", type=int, default=3, help="number of rounds; 0: only write the page")
    parser.add_argument("--only", default="", help="names of servers, or prefixes of names, separated by commas")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results.json")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "benchmarks.md")
    parser.add_argument("--fresh", action="store_true", help="discard earlier results")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the server being measured is stopped, too
    model = str(resolve_model(arguments.model, print))
    known = variants(arguments.peers, model)
    results: dict[str, Any] = {"runs": []}
    if arguments.results.exists() and not arguments.fresh:
        results = json.loads(arguments.results.read_text())
    here = machine()
    if results.setdefault("machine", here) != here:
        raise SystemExit(f"{arguments.results} is from another machine; use --fresh to discard it.")
    results["absent"] = [variant.name for variant in known if not variant.is_installed]
    wanted = tuple(arguments.only.split(",")) if arguments.only else ("",)
    chosen = [variant for variant in known if variant.is_installed and variant.name.startswith(wanted)]
    for name in results["absent"]:
        print(f"{name}: not installed")
    for number in range(arguments.rounds):
        name_of_round = time.strftime("%Y-%m-%d %H:%M:%S")  # ratios are of runs of one round
        for variant in chosen:
            print(f"round {number + 1}: {variant.name}", end="", flush=True)
            try:
                result = measure(variant, arguments.results.with_suffix(".log"))
            except (ServerFailed, BenchFailed) as error:
                print(f": {error}")
                continue
            print("".join(f", {name} {figures['rate']:.0f}" for name, figures in result["workloads"].items()))
            results["runs"].append(result | {"round": name_of_round})
            arguments.results.write_text(json.dumps(results, indent=1) + "\n")
    write_page(results, known, arguments.page)
    print(f"Wrote {arguments.page}.")


def measure(variant: Variant, log: Path) -> dict[str, Any]:
    """Start a server, run all loads, stop it; return the figures. Raises ServerFailed or BenchFailed."""
    figures: dict[str, Any] = {}
    seed = int(time.time())  # other prompts in each round
    with running(variant, log) as server:
        for workload in WORKLOADS:
            options = workload.options(server.url, seed)
            runs: list[Run] = []
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(run_bench(options, runs, lambda _: None, lambda _: None))
            report = runs[0].report(options)
            if report.num_errors:
                raise BenchFailed(f"{workload.name}: {report.errors}")
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
