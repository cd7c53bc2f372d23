"""What the kernels need on a machine, found out without importing Triton."""

import importlib.util
import os
import shutil
from collections.abc import Mapping


def missing_for_kernels(environ: Mapping[str, str] = os.environ) -> str | None:
    """Return a sentence on what Triton lacks to compile and start kernels here, or None.

    Triton builds a small module in C when it first starts a kernel.
    """
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed."
    compiler = environ.get("CC")
    if compiler is not None:
        return None if shutil.which(compiler) else f"Triton needs a C compiler, and CC={compiler} is none."
    if shutil.which("gcc") is None and shutil.which("clang") is None:
        return "Triton needs a C compiler: gcc, clang or the one that CC names."
    return None
