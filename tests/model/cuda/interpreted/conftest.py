"""Fixtures of the tests that compute kernels in Triton's interpreter."""

from collections.abc import Iterator

import pytest


@pytest.fixture
def as_on_a_gpu() -> Iterator[None]:
    """Give the interpreter the arithmetic of a GPU."""
    from tests.support.repaired_interpreter import repaired_interpreter  # imports Triton, which other tests do without

    with repaired_interpreter():
        yield
