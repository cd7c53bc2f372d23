"""Free memory for the KV pool."""

import ctypes
import re
from pathlib import Path

import psutil
import torch


def free_memory_bytes(cgroup: Path = Path("/sys/fs/cgroup"), *, mapped_bytes: int = 0) -> int:
    """Return the bytes that can still be allocated: free on the machine, or less under a container's limit.

    The memory use of a container includes files that it has read, such as the model; the kernel can reclaim them. It
    could also reclaim the mapped_bytes of packed weights, but every step reads them, so they count as used.
    """
    free = int(psutil.virtual_memory().available) - mapped_bytes
    try:
        limit = int((cgroup / "memory.max").read_text())
        used = int((cgroup / "memory.current").read_text())
        reclaimable = re.search(r"^inactive_file (\d+)$", (cgroup / "memory.stat").read_text(), re.MULTILINE)
    except (OSError, ValueError):  # no control group, or no limit in it ("max")
        return max(0, free)
    other_files = max(0, (int(reclaimable[1]) if reclaimable else 0) - mapped_bytes)
    return max(0, min(free, limit - used + other_files))


def give_back_freed_memory() -> None:
    """Return freed memory to the system: the C library keeps about 100 MB after loading a model."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc; other C libraries keep less
    if trim is not None:
        trim(0)


def free_gpu_memory_bytes(device: torch.device) -> int:
    """Return the free bytes of a GPU."""
    return int(torch.cuda.mem_get_info(device)[0])
