"""The tests of this folder run with the kernels as they are built for this processor and for lesser ones."""

import platform
from typing import Any

import pytest
import torch

from caravan.model.cpu.build import load_kernels

TARGETS = {
    "native": ("-march=native",),
    "untiled": ("-march=native", "-mno-amx-bf16"),
    "avx2": ("-march=x86-64-v3",),
    "plain": ("-march=x86-64",),
}


@pytest.fixture(scope="session", params=TARGETS)
def kernels(request: pytest.FixtureRequest) -> Any:
    """The kernels of one build after another."""
    name = request.param
    if name == "native":
        return load_kernels()
    if platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("the lesser builds are for x86-64")
    if name == "untiled" and not torch.cpu.get_capabilities().get("amx_bf16"):
        pytest.skip("the native build has no tiles")
    return load_kernels(TARGETS[name], f"caravan_{name}")
