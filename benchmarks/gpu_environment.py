"""Parts `environment` and `tests`: the machine, and `pytest -m gpu`."""

import os
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

ROOT = Path(__file__).parent.parent
NVIDIA_FIELDS = ("driver_version", "clocks.max.sm", "clocks.max.mem", "power.limit", "pstate")


def describe_environment(device: str) -> Iterator[dict[str, Any]]:
    """Yield the machine, the versions, and the GPU if kernels run on one."""
    yield machine()
    yield {
        "torch": version("torch"),
        "triton": _version("triton"),
        "cuda": torch.version.cuda,
        "compiler": os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang"),
        "missing": missing_for_kernels(),
        "is_right": missing_for_kernels() is None,
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
    """Return what nvidia-smi says of the first GPU; nothing where it is not installed."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return {}
    command = [program, "--id=0", f"--query-gpu={','.join(NVIDIA_FIELDS)}", "--format=csv,noheader"]
    found = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    values = found.stdout.strip().split(", ")
    return dict(zip(NVIDIA_FIELDS, values, strict=True)) if len(values) == len(NVIDIA_FIELDS) else {}


def run_tests() -> Iterator[dict[str, Any]]:
    """Yield how the tests with the marker `gpu` ended. Files without one are left out, with what they import."""
    files = [
        str(path.relative_to(ROOT))
        for path in sorted((ROOT / "tests").rglob("test_*.py"))
        if "pytest.mark.gpu" in path.read_text("utf-8")
    ]
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider", *files]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    lines = [line for line in (found.stdout + found.stderr).splitlines() if line.strip()]
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    yield {
        "files": files,
        "exit_status": found.returncode,
        "summary": lines[-1] if lines else "",
        "failed": failed[:10],
        "is_right": found.returncode == 0,
    }
