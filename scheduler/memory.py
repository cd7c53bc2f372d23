"""How much memory is free for the KV pool."""

from pathlib import Path

import psutil


def free_memory_bytes(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the bytes that can still be allocated: free on the machine, or less if a container's limit is nearer."""
    free = int(psutil.virtual_memory().available)
    try:
        limit = int((cgroup / "memory.max").read_text())
        used = int((cgroup / "memory.current").read_text())
    except (OSError, ValueError):  # no control group, or no limit in it ("max")
        return free
    return max(0, min(free, limit - used))
