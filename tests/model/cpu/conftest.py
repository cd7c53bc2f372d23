"""The tests of this folder run with the kernels as they are built for this processor and for each level of them."""

from typing import Any

import pytest

from tests.support.kernel_builds import load_build, useful_builds

# A build that is of no use here is not collected: it would be skipped six hundred times. The header names it.
LESSER = [pytest.param(name, marks=pytest.mark.slow) for name in useful_builds() if name != "native"]


@pytest.fixture(scope="session", params=["native", *LESSER])
def kernels(request: pytest.FixtureRequest) -> Any:
    """The kernels of one build after another."""
    return load_build(request.param)
