"""Parts `environment` and `tests`: the machine, and `pytest -m gpu`."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import machine
from caravan.model.cuda.requirements import missing_for_kernels
from caravan.model.gpu_requirements import missing_for_gpu

ROOT = Path(__file__).parent.parent
NVIDIA_SECONDS = 10  # until a driver that is not loaded answers
NUM_PROCESSES = 4  # that run tests, most of whose time is that of Triton's compiler
NVIDIA_FIELDS = ("driver_version", "clocks.max.sm", "clocks.max.mem", "power.limit", "pstate")

# A line of `pytest -v`, with several processes or with one.
_TEST_LINE = re.compile(r"(?:\[gw\d+\] +\[ *\d+%\]|\S+) (PASSED|FAILED|ERROR|SKIPPED)\b")


def describe_environment(device: str) -> Iterator[dict[str, Any]]:
    """Yield the machine, the versions, and the GPU if kernels run on one."""
    yield machine()
    missing = missing_for_gpu() if device == "cuda" else missing_for_kernels()
    yield {
        "torch": version("torch"),
        "triton": _version("triton"),
        "cuda": torch.version.cuda,
        "compiler": os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang"),
        "missing": missing,
        "is_right": missing is None,
    }
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        free, total = torch.cuda.mem_get_info(0)
        yield {
            "gpu": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory_bytes": total,
            "free_bytes": free,
            "cache_bytes": properties.L2_cache_size,
            **_nvidia_fields(),
        }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _nvidia_fields() -> dict[str, str]:
    """Return what nvidia-smi says of the first GPU; nothing where it is not installed or does not answer."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return {}
    command = [program, "--id=0", f"--query-gpu={','.join(NVIDIA_FIELDS)}", "--format=csv,noheader"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=False, timeout=NVIDIA_SECONDS)
    except subprocess.TimeoutExpired:
        return {}
    values = found.stdout.strip().split(", ")
    return dict(zip(NVIDIA_FIELDS, values, strict=True)) if len(values) == len(NVIDIA_FIELDS) else {}


def run_tests(seconds: float, device: str, out: Path) -> Iterator[dict[str, Any]]:
    """Yield how the tests with the marker `gpu` ended, after these seconds as far as they came.

    Files without one are left out, with what they import. The output is `tests.txt` in the folder `out`: a pipe would
    stay open as long as a process of pytest hangs.
    """
    files = [
        str(path.relative_to(ROOT))
        for path in sorted((ROOT / "tests").rglob("test_*.py"))
        if "pytest.mark.gpu" in path.read_text("utf-8")
    ]
    processes = NUM_PROCESSES if device == "cuda" else 0  # without a GPU each test is skipped
    options = ["-m", "gpu", "-v", "-p", "no:cacheprovider", f"--numprocesses={processes}"]
    path = out / "tests.txt"
    with path.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "pytest", *options, *files], cwd=ROOT, stdout=output, stderr=subprocess.STDOUT
        )
        try:
            status: int | None = process.wait(seconds)
        except subprocess.TimeoutExpired:
            status = None
            process.kill()  # the processes that it started end with the part
            process.wait()
    yield {"files": files, **outcome(path.read_text("utf-8", errors="replace"), status, device)}


def outcome(output: str, status: int | None, device: str) -> dict[str, Any]:
    """Return the outcome of `pytest -v` from its output and exit status, which is None if it was cut.

    On a GPU a run in which a test was skipped, or none was run, is not right.
    """
    lines = [line for line in output.splitlines() if line.strip()]
    words = [found[1] for found in map(_TEST_LINE.match, lines) if found]
    counts = {word.lower(): words.count(word) for word in ("PASSED", "FAILED", "ERROR", "SKIPPED")}
    is_gpu, is_cut = device == "cuda", status is None
    bad = counts["failed"] + counts["error"] + (counts["skipped"] if is_gpu else 0)
    return {
        "exit_status": status,
        **counts,
        "summary": lines[-1] if lines else "",
        "failures": [line for line in lines if line.startswith(("FAILED", "ERROR"))][:10],
        "is_cut": is_cut,
        "is_right": not bad and (is_cut or (status == 0 and (counts["passed"] > 0 or not is_gpu))),
    }
