"""How long the tests with random input and killed processes go on: `make test EXTENT=full` takes all."""

import os
from collections.abc import Iterable
from typing import Any

import pytest


def extent(full: int, short: int) -> int:
    """Return how often something is tried: `short` by default and in CI, `full` where TEST_EXTENT says so."""
    return full if is_full() else short


def is_full() -> bool:
    """Return whether TEST_EXTENT asks for the longer tests."""
    return os.environ.get("TEST_EXTENT") == "full"


def only_in_full() -> pytest.MarkDecorator:
    """Return the mark of a test of which CI has a shorter relative."""
    return pytest.mark.skipif(not is_full(), reason="takes long: make test EXTENT=full")


def every(step: int, values: Iterable[Any]) -> list[Any]:
    """Return the values of a parameter; by default only every `step`-th is tried, from the first on."""
    return [pytest.param(value, marks=[only_in_full()] * (number % step > 0)) for number, value in enumerate(values)]
