"""One part of benchmarks/gpu.py, in a process of its own: a fault of a GPU ends the process that meets it.

Each result is a line of JSON on standard output. Exit status 3: there was no time for all results.
"""

import argparse
import json
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.gpu_shapes import GPUS, Gpu

if TYPE_CHECKING:
    from benchmarks.gpu_sizes import Sizes

CUT = 3  # exit status
STARTING_SHARE = 0.85  # of its seconds in which a part starts further measurements
WHOLE_PARTS = ("tests", "trace")  # these have one result
OTHER_CARDS = re.compile(r"\bPCIE?\b|\bNVL\b|\b40GB\b", re.IGNORECASE)  # slower than the ones with figures


def results_of(part: str, sizes: "Sizes", out: Path) -> Iterator[dict[str, Any]]:
    """Return the results of a part; modules are imported late, as each can fail."""
    gpu = published(device_name(sizes))
    if part == "kernels":
        from benchmarks.gpu_oracle import compare_kernels

        return compare_kernels(sizes)
    if part == "equal bits":
        from benchmarks.gpu_equal_bits import compare_bits

        return compare_bits(sizes)
    if part == "times":
        from benchmarks.gpu_times import time_kernels

        return time_kernels(sizes, gpu)
    if part == "trace":
        from benchmarks.gpu_trace import trace_steps

        return trace_steps(sizes, out)
    from benchmarks.gpu_streams import measure_bf16, measure_int4

    return {"engine bf16": measure_bf16, "engine int4": measure_int4}[part](sizes, gpu)


def device_name(sizes: "Sizes") -> str:
    """Return the GPU's name, or an empty one where kernels are interpreted."""
    import torch

    return torch.cuda.get_device_name(0) if sizes.is_gpu else ""


def published(name: str) -> Gpu | None:
    """Return the published figures of a GPU with this name, such as `NVIDIA H200`, if they are known.

    A card of the same name in another form, such as `NVIDIA H100 PCIe`, has other figures.
    """
    if OTHER_CARDS.search(name):
        return None
    return next((gpu for gpu in GPUS if re.search(rf"\b{gpu.name}\b", name)), None)


def started(part: str, seconds: float, out: Path, *, is_tiny: bool, stack: ExitStack) -> Iterator[dict[str, Any]]:
    """Return the results of a part; `seconds` are for the tests, which end then.

    With is_tiny the interpreter computes as a GPU does while `stack` is open.
    """
    if part in ("environment", "tests"):  # these need no Triton
        from benchmarks.gpu_environment import describe_environment, run_tests

        device = "cpu" if is_tiny else "cuda"
        return run_tests(seconds, device, out) if part == "tests" else describe_environment(device)
    if is_tiny:
        from tests.support.repaired_interpreter import repaired_interpreter

        assert os.environ.get("TRITON_INTERPRET") == "1", "Triton reads it when it is imported"
        stack.enter_context(repaired_interpreter())
    from benchmarks.gpu_sizes import FULL, TINY

    return results_of(part, TINY if is_tiny else FULL, out)


def main() -> int:
    """Run the part that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part")
    parser.add_argument("seconds", type=float)
    parser.add_argument("out", type=Path)
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    seconds = STARTING_SHARE * options.seconds
    limit = time.monotonic() + seconds
    with ExitStack() as stack:
        for result in started(options.part, seconds, options.out, is_tiny=options.tiny, stack=stack):
            print(json.dumps(result), flush=True)
            is_late = time.monotonic() > limit and options.part not in WHOLE_PARTS
            if is_late or result.get("is_cut"):
                return CUT
    return 0


if __name__ == "__main__":
    sys.exit(main())
