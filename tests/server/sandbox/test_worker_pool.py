"""WorkerPool and WorkerProcess: exceeded limits, lost workers and retries."""

import json
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from caravan.server.openai.structured_output.schema_grammar import grammar_of_schema
from caravan.server.sandbox import grammar_worker
from caravan.server.sandbox.worker_pool import WorkerPool, WorkerUnavailable
from caravan.server.sandbox.worker_process import (
    MEMORY_EXIT_STATUS,
    MemoryLimitExceeded,
    TimeLimitExceeded,
    WorkerLost,
    WorkerProcess,
)
from tests.support import scripted_worker
from tests.support.waiting import eventually

Step = tuple[str, Any]


def scripted(time_limit_seconds: float = 5.0, wall_limit_seconds: float | None = None) -> WorkerProcess:
    return WorkerProcess(scripted_worker.__file__, time_limit_seconds, 2**30, wall_limit_seconds=wall_limit_seconds)


def question(*steps: Step) -> dict[str, Any]:
    return {"grammar": json.dumps(steps)}


@pytest.fixture
def pool() -> Iterator[WorkerPool]:
    pool = WorkerPool(lambda: scripted(wall_limit_seconds=1.0))
    yield pool
    pool.close()


def test_exceeding_the_time_limit_is_an_error_of_the_request() -> None:
    began = time.monotonic()
    with pytest.raises(TimeLimitExceeded):
        scripted(time_limit_seconds=0.1).call(question(("burn", 60)))
    assert time.monotonic() - began < 20


@pytest.mark.slow
def test_sleeping_does_not_count_as_processor_time() -> None:
    worker = scripted(time_limit_seconds=0.1)
    assert worker.call(question(("sleep", 0.5))) == {}
    worker.close()


@pytest.mark.parametrize(
    "step", [("exit", MEMORY_EXIT_STATUS), ("say and abort", "memory allocation of 8 bytes failed\n")]
)
def test_exceeding_the_memory_limit_is_an_error_of_the_request(step: Step) -> None:
    with pytest.raises(MemoryLimitExceeded):
        scripted().call(question(step))


@pytest.mark.parametrize(
    "step",
    [
        ("signal", signal.SIGKILL),
        ("signal", signal.SIGTERM),
        ("signal", signal.SIGSEGV),
        ("exit", 0),
        ("exit", 1),
        ("say and abort", "panicked\n"),
    ],
)
def test_threat_27_a_worker_that_ends_for_another_reason_is_lost(step: Step) -> None:
    with pytest.raises(WorkerLost):
        scripted().call(question(step))


@pytest.mark.slow
def test_threat_27_a_stopped_worker_is_lost_after_the_wall_limit() -> None:
    worker = scripted(wall_limit_seconds=0.5)
    began = time.monotonic()
    with pytest.raises(WorkerLost, match=r"0\.5 seconds"):
        worker.call(question(("signal", signal.SIGSTOP)))
    assert time.monotonic() - began < 5


@pytest.mark.slow
def test_threat_27_a_worker_that_does_not_read_is_lost_after_the_wall_limit() -> None:
    worker = scripted(wall_limit_seconds=0.5)
    os.kill(worker.pid, signal.SIGSTOP)
    with pytest.raises(WorkerLost):
        worker.call(question(("fail", "x" * 2**20)))  # more than the pipe holds


def test_requests_and_replies_of_megabytes_are_complete(pool: WorkerPool) -> None:
    text = "é" * 2**21
    assert pool.call(question(("fail", text))) == {"failed": text}


@pytest.mark.slow
@pytest.mark.parametrize("harm", [signal.SIGKILL, signal.SIGSTOP])
def test_threat_27_a_worker_killed_or_stopped_between_two_calls_is_replaced(
    pool: WorkerPool, harm: signal.Signals
) -> None:
    assert pool.call(question()) == {}
    (pid,) = pool.pids
    os.kill(pid, harm)
    assert pool.call(question(("fail", "yes"))) == {"failed": "yes"}
    assert pool.pids != [pid]
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_threat_27_a_call_is_retried_once_if_its_worker_is_killed(pool: WorkerPool, tmp_path: Path) -> None:
    log, marker = str(tmp_path / "log"), str(tmp_path / "marker")
    assert pool.call(question(("append to", log), ("signal once", marker), ("fail", "no"))) == {"failed": "no"}
    assert (tmp_path / "log").read_text().count("asked") == 2


def test_threat_27_two_lost_workers_raise_worker_unavailable(pool: WorkerPool, tmp_path: Path) -> None:
    log = str(tmp_path / "log")
    with pytest.raises(WorkerUnavailable, match="signal 9"):
        pool.call(question(("append to", log), ("signal", signal.SIGKILL)))
    assert (tmp_path / "log").read_text().count("asked") == 2
    assert pool.call(question()) == {}


@pytest.mark.slow
def test_a_slow_call_does_not_delay_another(pool: WorkerPool) -> None:
    with ThreadPoolExecutor(2) as threads:
        slow = threads.submit(pool.call, question(("sleep", 0.8)))
        time.sleep(0.1)
        assert threads.submit(pool.call, question()).result() == {}
        assert not slow.done()
        assert slow.result() == {}
    assert len(pool.pids) == 2


def test_closing_a_pool_ends_busy_workers_too() -> None:
    pool = WorkerPool(scripted)
    with ThreadPoolExecutor(1) as threads:
        asked = threads.submit(pool.call, question(("sleep", 60)))
        eventually(lambda: bool(pool.pids))
        pool.close()
        with pytest.raises(WorkerUnavailable):
            asked.result(60)
    assert pool.pids == []
    with pytest.raises(WorkerUnavailable, match="shutting down"):
        pool.call(question())


def test_the_grammar_worker_enforces_its_limits() -> None:
    harmless = grammar_of_schema({"enum": [f"word {number}" for number in range(3000)]})
    worker = WorkerProcess(grammar_worker.__file__, 0.001, 2**30)
    with pytest.raises(TimeLimitExceeded):
        worker.call({"grammar": harmless})
