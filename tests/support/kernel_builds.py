"""The builds of the kernels that are tested: for this processor, for each level, and plain. As a program, make them."""

import platform
from typing import Any

import torch

from caravan.model.cpu.build import build_kernels, load_kernels
from caravan.model.cpu.levels import LEVELS

NAMES = ("native", *(level.name for level in LEVELS), "plain")


def obstacle(name: str) -> str | None:
    """Return why a build is of no use on this machine, None if it is of use."""
    if name != "native" and platform.machine() not in ("x86_64", "AMD64"):
        return "the lesser builds are for x86-64"
    capabilities = torch.cpu.get_capabilities()
    if any(level.name == name and not level.runs_on(capabilities) for level in LEVELS):
        return "this processor lacks a feature of the level"
    return None


def load_build(name: str) -> Any:
    """Return the operators of a build, which is made if it is not in the cache."""
    if name == "native":
        return load_kernels()
    if name == "plain":
        return build_kernels(("-march=x86-64",), "caravan_plain")
    (level,) = (level for level in LEVELS if level.name == name)
    return build_kernels(level.target, level.library)


if __name__ == "__main__":
    for name in NAMES:
        if obstacle(name) is None:
            load_build(name)
