"""The tests of this folder run with the kernels as they are built for this processor and for each level of them."""

import platform
from typing import Any

import pytest
import torch

from caravan.model.cpu.build import build_kernels, load_kernels
from caravan.model.cpu.levels import LEVELS


@pytest.fixture(scope="session", params=["native", *(level.name for level in LEVELS), "plain"])
def kernels(request: pytest.FixtureRequest) -> Any:
    """The kernels of one build after another."""
    name = request.param
    if name == "native":
        return load_kernels()
    if platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("the lesser builds are for x86-64")
    if name == "plain":
        return build_kernels(("-march=x86-64",), "caravan_plain")
    (level,) = (level for level in LEVELS if level.name == name)
    if not level.runs_on(torch.cpu.get_capabilities()):
        pytest.skip("this processor lacks a feature of the level")
    return build_kernels(level.target, level.library)
