"""A file of tests that leaves something open fails, and the next file does not."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
LEAVES = """
import gc, socket
import pytest

gc.disable()  # or it may be found at any time

@pytest.fixture
def left():
    cycle = [socket.socket()]
    cycle.append(cycle)
    return cycle

def test_one({first}): pass

def test_two({second}): pass
"""
INNOCENT = """
import gc

def test_three(): gc.collect()
"""


def run(folder: Path, first: str = "", second: str = "") -> str:
    """Run a file of two tests, either of which may leave a socket open, and then an innocent file."""
    (folder / "test_a.py").write_text(LEAVES.format(first=first, second=second))
    (folder / "test_b.py").write_text(INNOCENT)
    (folder / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n")
    plugins = ("-p", "tests.support.leaks", "-p", "no:cacheprovider")
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-v", *plugins, "test_a.py", "test_b.py"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    ).stdout


@pytest.mark.parametrize("leaky", ["first", "second"])
def test_what_a_file_leaves_open_is_reported_after_its_last_test(tmp_path: Path, leaky: str) -> None:
    shown = run(tmp_path, **{leaky: "left"})
    assert "test_a.py::test_two ERROR" in shown
    assert "unclosed <socket.socket" in shown
    assert "A test of test_a.py left it open" in shown
    assert "test_b.py::test_three PASSED" in shown
    assert "3 passed, 1 error in " in shown


def test_a_file_that_leaves_nothing_open_passes(tmp_path: Path) -> None:
    assert "3 passed in " in run(tmp_path)
