"""The machine of a measurement."""

import os
import platform
from pathlib import Path

import psutil

_FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")


def machine() -> dict[str, str]:
    """Return processor, its features that matter here, cores, memory and system, for people."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = fields.get("flags", "").split()
    return {
        "processor": f"{fields.get('model name', platform.machine())}, family {fields.get('cpu family', '?')}, "
        f"model {fields.get('model', '?')}",
        "features": ", ".join(feature for feature in _FEATURES if feature in flags)
        or "none of " + ", ".join(_FEATURES),
        "cores": str(os.cpu_count()),
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
    }
