"""The tests of this folder run with the kernels as they are built for this processor and for each level of them."""

from typing import Any

import pytest

from tests.support.kernel_builds import NAMES, load_build, obstacle

LESSER = [pytest.param(name, marks=pytest.mark.slow) for name in NAMES if name != "native"]


@pytest.fixture(scope="session", params=["native", *LESSER])
def kernels(request: pytest.FixtureRequest) -> Any:
    """The kernels of one build after another."""
    reason = obstacle(request.param)
    if reason is not None:
        pytest.skip(reason)
    return load_build(request.param)
