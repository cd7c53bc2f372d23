"""How much memory is free for the KV pool, and how loading leaves more of it."""

import ctypes
import re
from pathlib import Path

import psutil
import torch


def free_memory_bytes(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the bytes that can still be allocated: free on the machine, or less if a container's limit is nearer.

    What a container uses counts the files it has read, such as the model; the kernel gives those pages back.
    """
    free = int(psutil.virtual_memory().available)
    try:
        limit = int((cgroup / "memory.max").read_text())
        used = int((cgroup / "memory.current").read_text())
        reclaimable = re.search(r"^inactive_file (\d+)$", (cgroup / "memory.stat").read_text(), re.MULTILINE)
    except (OSError, ValueError):  # no control group, or no limit in it ("max")
        return free
    return max(0, min(free, limit - used + (int(reclaimable[1]) if reclaimable else 0)))


def give_back_freed_memory() -> None:
    """Return to the system what has been freed: the C library keeps a hundred megabytes after loading a model."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc; others keep less
    if trim is not None:
        trim(0)


def free_gpu_memory_bytes(device: torch.device) -> int:
    """Return the bytes of a GPU that nobody has taken."""
    return int(torch.cuda.mem_get_info(device)[0])
