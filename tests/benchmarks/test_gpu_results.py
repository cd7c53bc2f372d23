"""Results of the script for a GPU: a measurement that fails is a result, and the next one has its memory."""

import logging
import signal
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks import gpu_environment
from benchmarks.gpu import ending
from benchmarks.gpu_environment import describe_environment, outcome
from benchmarks.gpu_results import guarded, no_logged_errors

SEVERAL = """[gw0] [  5%] PASSED tests/a.py::test_one[plain]
[gw3] [100%] {} tests/a.py::test_two
FAILED tests/a.py::test_two - AssertionError
=== 1 passed, 1 other in 3.1s ===
"""


class Memory:
    """What a measurement holds."""


def test_an_exception_is_the_last_result_and_holds_no_memory() -> None:
    held: list[weakref.ref[Memory]] = []

    def results() -> Iterator[dict[str, Any]]:
        memory = Memory()
        held.append(weakref.ref(memory))
        yield {"a": 1}
        raise ValueError("x" * 999)

    found = []
    for result in guarded("this", results()):
        found.append(result)
        if "error" in result:
            assert held[0]() is None
    assert found[0] == {"a": 1}
    assert found[1] == {"failed": "this", "error": "ValueError: " + "x" * 288, "is_right": False}


@no_logged_errors()
def log_errors(logger: logging.Logger) -> None:
    logger.error("A step failed.", exc_info=ValueError("reason"))
    logger.error("Another one.")


def test_an_error_that_is_only_logged_is_an_error() -> None:
    logger = logging.getLogger("caravan.scheduler.overlap")
    with no_logged_errors():
        logger.warning("A warning is none.")
    with pytest.raises(RuntimeError, match="2 errors were logged, first: A step failed. ValueError\\('reason'\\)"):
        log_errors(logger)
    assert not logging.getLogger("caravan").handlers


@pytest.mark.parametrize(
    ("status", "expected"),
    [(2, "exit status 2"), (-signal.SIGSEGV, "ended by SIGSEGV"), (-99, "ended by signal 99")],
)
def test_the_end_of_a_process_is_named(status: int, expected: str) -> None:
    assert ending(status) == expected


def test_the_outcome_of_tests_is_counted() -> None:
    found = outcome(SEVERAL.format("FAILED"), 1, "cuda")
    assert (found["passed"], found["failed"], found["skipped"]) == (1, 1, 0)
    assert (found["is_right"], found["is_cut"]) == (False, False)
    assert found["failures"] == ["FAILED tests/a.py::test_two - AssertionError"]
    assert found["summary"] == "=== 1 passed, 1 other in 3.1s ==="
    one = outcome("tests/a.py::test_one[a b] PASSED [ 50%]\ntests/a.py::test_two PASSED [100%]\n", 0, "cuda")
    assert (one["passed"], one["is_right"]) == (1, True)  # a name with a space is not counted, but harmless


def test_tests_that_are_skipped_on_a_gpu_are_wrong_and_without_one_right() -> None:
    text = "tests/a.py::test_one SKIPPED (no CUDA device) [100%]\n"
    assert not outcome(text, 0, "cuda")["is_right"]
    assert outcome(text, 0, "cpu")["is_right"]
    assert not outcome("", 0, "cuda")["is_right"]
    assert not outcome("No module named pytest", 1, "cpu")["is_right"]


def test_tests_that_are_cut_are_right_as_far_as_they_came() -> None:
    found = outcome(SEVERAL.format("PASSED").partition("FAILED")[0], None, "cuda")
    assert (found["passed"], found["is_cut"], found["is_right"]) == (2, True, True)
    assert not outcome(SEVERAL.format("FAILED").partition("\nFAILED")[0], None, "cuda")["is_right"]
    assert outcome("", None, "cuda") | {"is_right": True} == outcome("", None, "cuda")


def test_a_gpu_is_described_though_its_driver_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(gpu_environment, "NVIDIA_SECONDS", 0.1)
    monkeypatch.setattr(gpu_environment, "missing_for_gpu", lambda: "It has no Python.h.")

    class Properties:
        name, major, minor, multi_processor_count, L2_cache_size = "NVIDIA H200", 9, 0, 132, 50 * 2**20

    monkeypatch.setattr("torch.cuda.get_device_properties", lambda index: Properties)
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda index: (1, 2))
    _, versions, device = describe_environment("cuda")
    assert (versions["missing"], versions["is_right"]) == ("It has no Python.h.", False)
    assert (device["gpu"], device["capability"], device["memory_bytes"]) == ("NVIDIA H200", "9.0", 2)
    assert "driver_version" not in device
    program.write_text("#!/bin/sh\necho '580.1, 1980 MHz, 3201 MHz, 700.00 W, P0'\n")
    monkeypatch.setattr(gpu_environment, "NVIDIA_SECONDS", 10)
    assert [*describe_environment("cuda")][2]["driver_version"] == "580.1"
