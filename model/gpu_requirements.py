"""What a machine needs to run the kernels for GPUs, found out without importing Triton."""

import sysconfig
from pathlib import Path

import torch

from caravan.model.cuda.requirements import missing_for_kernels

LEAST_CAPABILITY = (8, 0)  # of an A100: matrix instructions in bfloat16, copies to shared memory that need no registers


def missing_for_gpu() -> str | None:
    """Return a sentence on what this machine lacks to compile and run the kernels on its GPU, or None."""
    return missing_for_kernels() or _missing_headers() or _missing_capability()


def _missing_headers() -> str | None:
    """Return a sentence if the module that starts a kernel cannot be compiled: it includes Python.h.

    Source: `_build` in triton/runtime/build.py.
    """
    scheme = sysconfig.get_default_scheme()
    # Debian's own scheme names a folder in /usr/local, where its packages put no headers.
    folder = sysconfig.get_paths("posix_prefix" if scheme == "posix_local" else scheme)["include"]
    if (Path(folder) / "Python.h").is_file():
        return None
    package = f"python{sysconfig.get_python_version()}-dev"
    return (
        f"Triton needs Python's headers, and {folder} has no Python.h. Install {package}, or as your system names it."
    )


def _missing_capability() -> str | None:
    """Return a sentence if the GPU is older than the kernels support."""
    found = torch.cuda.get_device_capability()
    if found >= LEAST_CAPABILITY:
        return None
    name, least = torch.cuda.get_device_name(), ".".join(map(str, LEAST_CAPABILITY))
    return f"{name} has compute capability {found[0]}.{found[1]}; the kernels need {least} (A100) or newer."
