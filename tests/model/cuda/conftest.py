"""Proofs run with `make proofs` alone: they import Triton, which other tests do without."""

import os
from pathlib import Path

import pytest


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out the files of the other kind: kernels are interpreted, or compiled and traced, each in its process."""
    if not collection_path.name.startswith("test_"):
        return None
    wanted = ("interpreted",) if os.environ.get("TRITON_INTERPRET") == "1" else ("compiled", "traced")
    is_wanted = collection_path.parent.name in wanted and config.getoption("markexpr") == "proofs"
    return None if is_wanted else True
