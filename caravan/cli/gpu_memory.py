"""The memory of GPUs as their makers state it, for plans without one."""

from typing import Literal

GpuName = Literal["a100", "h100", "h200", "b200", "mi300x"]


def gpu_memory_bytes(name: GpuName) -> int:
    """Return the memory of a GPU: A100 and H100 with 80 GB, H200, B200 or MI300X."""
    gigabytes = {"a100": 80, "h100": 80, "h200": 141, "b200": 180, "mi300x": 192}
    return gigabytes[name] * 10**9
