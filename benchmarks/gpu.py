"""Measure the GPU path on a GPU, in 12 minutes: `python -m benchmarks.gpu`; docs/gpu.md says what it prints.

It needs no network and no model: weights are random numbers made on the device. Each part runs in a process of its
own, within a time of its own, and ends with a line of JSON on standard output. What a part has measured is also
written to a file in the folder `--out` at once. Exit status 1: a part failed, or a result is not right.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from benchmarks.gpu_part import CUT

ROOT = Path(__file__).parent.parent
# Seconds of each part, 12 minutes in all; what a part leaves is given to those after it.
PARTS: Mapping[str, float] = MappingProxyType(
    {
        "environment": 20,
        "kernels": 90,
        "equal bits": 80,
        "times": 110,
        "engine bf16": 160,
        "engine int4": 120,
        "tests": 90,
        "trace": 50,
    }
)


def run_part(part: str, seconds: float, out: Path, *, is_tiny: bool) -> dict[str, Any]:
    """Run a part for at most this time; return its state, its results and what was wrong."""
    started = time.monotonic()
    name = part.replace(" ", "_")
    results_path, log_path = out / f"{name}.jsonl", out / f"{name}.log"
    command = [sys.executable, "-m", "benchmarks.gpu_part", part, str(seconds), str(out), *["--tiny"] * is_tiny]
    environ = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    if is_tiny:
        environ["TRITON_INTERPRET"] = "1"  # before Triton is imported
    with results_path.open("w") as results_file, log_path.open("w") as log_file:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environ, stdout=results_file, stderr=log_file, start_new_session=True
        )
        try:
            status: int | None = process.wait(seconds)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # with the processes that it started
            process.wait()
    results = read_results(results_path.read_text("utf-8", errors="replace"))
    line: dict[str, Any] = {"part": part, "seconds": round(time.monotonic() - started, 1)}
    if status == 0:
        line["state"] = "complete"
    elif status in (None, CUT):
        line["state"] = "cut"
        line["limit"] = round(seconds, 1)
    else:
        line["state"] = "failed"
        text = last_line(log_path.read_text("utf-8", errors="replace"))
        line["error"] = text if status == 1 and text else f"{ending(status)}: {text}".removesuffix(": ")
    wrong = sum(not result.get("is_right", True) for result in results)
    return {**line, "wrong": wrong, "results": results}


def read_results(text: str) -> list[dict[str, Any]]:
    """Return the results in a part's output; a line that was cut, or that a library has printed, is left out."""
    results = []
    for line in text.splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            result = json.loads(line)
            if isinstance(result, dict):
                results.append(result)
    return results


def last_line(text: str) -> str:
    """Return the last line that is not blank, such as the exception of a traceback."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")


def ending(status: int) -> str:
    """Return how a process ended: with an exit status that is not 0, or by a signal, such as a fault in a driver."""
    if status >= 0:
        return f"exit status {status}"
    try:
        return f"ended by {signal.Signals(-status).name}"
    except ValueError:
        return f"ended by signal {-status}"


def obstacle() -> str | None:
    """Return a sentence on what this machine lacks to run kernels on a GPU, or None."""
    import torch

    from caravan.model.gpu_requirements import missing_for_gpu

    if not torch.cuda.is_available():
        return "PyTorch finds no GPU on this machine. --tiny computes everything at tiny sizes on the CPU."
    return missing_for_gpu()


def run_parts(parts: list[str], seconds: float, out: Path, *, is_tiny: bool) -> bool:
    """Run parts one after the other, print a line for each, and return whether all went well."""
    out.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + seconds
    is_well = True
    for index, part in enumerate(parts):
        left = deadline - time.monotonic()
        share = PARTS[part] / sum(PARTS[later] for later in parts[index:])
        line = run_part(part, max(left, 0) * share, out.resolve(), is_tiny=is_tiny)
        print(json.dumps(line), flush=True)
        is_well = is_well and line["state"] != "failed" and not line["wrong"]
    return is_well


def main() -> int:
    """Run the parts that the command line names."""
    parser = argparse.ArgumentParser(prog="benchmarks.gpu", description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="tiny sizes on the CPU, in Triton's interpreter")
    parser.add_argument("--part", action="append", choices=list(PARTS), help="run this part alone; can be repeated")
    parser.add_argument("--seconds", type=float, default=sum(PARTS.values()), help="in all; default: %(default)s")
    parser.add_argument("--out", type=Path, default=Path("build/gpu"), help="folder of files; default: %(default)s")
    options = parser.parse_args()
    if not options.tiny and (reason := obstacle()) is not None:
        parser.error(reason)
    parts = [part for part in PARTS if options.part is None or part in options.part]
    return 0 if run_parts(parts, options.seconds, options.out, is_tiny=options.tiny) else 1


if __name__ == "__main__":
    sys.exit(main())
