"""The tests of this folder run with the kernels as they are built for this processor and for lesser ones."""

import platform
from typing import Any

import pytest

from model.cpu.build import load_kernels

TARGETS = {"native": "-march=native", "avx2": "-march=x86-64-v3", "plain": "-march=x86-64"}


@pytest.fixture(scope="session", params=TARGETS)
def kernels(request: pytest.FixtureRequest) -> Any:
    """The kernels of one build after another."""
    name = request.param
    if name == "native":
        return load_kernels()
    if platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("the lesser builds are for x86-64")
    return load_kernels((TARGETS[name],), f"caravan_{name}")
