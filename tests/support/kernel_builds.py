"""The builds of the kernels that are tested: for this processor, for each level, and plain. As a program, make them."""

import os
import platform
from typing import Any

import torch

from caravan.model.cpu.build import KernelsUnavailable, build_kernels, built_library, load_kernels
from caravan.model.cpu.levels import LEVELS

NAMES = ("native", *(level.name for level in LEVELS), "plain")


def obstacle(name: str) -> str | None:
    """Return why a build is of no use on this machine, None if it is of use."""
    if name != "native" and platform.machine() not in ("x86_64", "AMD64"):
        return "the lesser builds are for x86-64"
    capabilities = torch.cpu.get_capabilities()
    if any(level.name == name and not level.runs_on(capabilities) for level in LEVELS):
        return "this processor lacks a feature of the level"
    if any(level.name == name and level.is_all_of(capabilities) for level in LEVELS):
        return "the native build has the features of this level"  # and its bits: tests/model/cpu/test_levels.py
    return None


def useful_builds() -> list[str]:
    """Return the names of the builds that are of use on this machine."""
    return [name for name in NAMES if obstacle(name) is None]


def load_build(name: str) -> Any:
    """Return the operators of a build, which is made if it is not in the cache."""
    if name == "native":
        return load_kernels()
    if name == "plain":
        return build_kernels(("-march=x86-64",), "caravan_plain")
    (level,) = (level for level in LEVELS if level.name == name)
    return build_kernels(level.target, level.library)


def main() -> None:
    """Make all builds, those that only the wheel and the image have included; without a compiler there are none."""
    try:
        if platform.machine() in ("x86_64", "AMD64"):
            for level in LEVELS:
                built_library(level.target, level.library, os.environ)
        for name in useful_builds():
            load_build(name)
    except KernelsUnavailable as error:
        print(f"No kernels, whose tests fail: {error}")


if __name__ == "__main__":
    main()
