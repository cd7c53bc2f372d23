"""`make proofs` runs both kinds of proofs, within a limit of time."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Triton is for Linux")


def make_proofs(folder: Path, pytest_script: str, seconds: float) -> subprocess.CompletedProcess[str]:
    """Run `make proofs` with a program in the place of pytest."""
    program = folder / "pytest"
    program.write_text(f"#!/bin/sh\n{pytest_script}\n")
    program.chmod(0o755)
    command = ["make", "--old-file=.venv/dev.stamp", "proofs", f"BIN={folder}", f"PROOF_SECONDS={seconds}"]
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    return subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, check=False, timeout=60)


def test_kernels_are_interpreted_and_then_compiled_and_traced(tmp_path: Path) -> None:
    found = make_proofs(tmp_path, 'echo "${TRITON_INTERPRET:-0} $*"', 30)
    assert found.returncode == 0
    interpreted, compiled = found.stdout.splitlines()
    assert interpreted.startswith("1 --numprocesses auto ")
    assert interpreted.endswith(" -m proofs tests/model/cuda/interpreted")
    assert compiled.startswith("0 --numprocesses auto ")
    assert compiled.endswith(" -m proofs tests/model/cuda/compiled tests/model/cuda/traced")


def test_a_proof_that_fails_is_the_last_one(tmp_path: Path) -> None:
    found = make_proofs(tmp_path, "echo started; exit 1", 30)
    assert found.returncode != 0
    assert found.stdout.splitlines() == ["started"]


def test_proofs_that_take_too_long_end_with_a_line_that_says_so(tmp_path: Path) -> None:
    found = make_proofs(tmp_path, "echo started; sleep 50", 0.5)
    assert found.returncode != 0
    assert found.stdout.splitlines() == [
        "started",
        "make proofs took longer than 0.5 seconds, its limit on two cores; PROOF_SECONDS sets another.",
    ]
