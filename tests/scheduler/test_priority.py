"""Low priority: of a process, which is restored, and of one thread."""

import os
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from caravan.scheduler import priority as module
from caravan.scheduler.priority import LowPriority, lower_thread_priority


def test_the_priority_of_a_process_is_lowered_and_restored(tmp_path: Path) -> None:
    (tmp_path / "autogroup").write_text("/autogroup-7 nice 0")
    (tmp_path / "oom_score_adj").write_text("-5\n")
    priority = LowPriority(tmp_path)
    assert (tmp_path / "autogroup").read_text() == "10"
    assert (tmp_path / "oom_score_adj").read_text() == "1000"
    priority.end()
    assert (tmp_path / "autogroup").read_text() == "0"
    assert (tmp_path / "oom_score_adj").read_text() == "-5\n"


def test_a_system_without_these_files_is_left_alone(tmp_path: Path) -> None:
    LowPriority(tmp_path / "none").end()
    assert not [*tmp_path.iterdir()]


def test_a_priority_that_linux_does_not_restore_at_once_is_restored_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "RETRY_SECONDS", 0.001)
    num_refused, restored = 3, threading.Event()

    def write_text(text: str) -> None:
        nonlocal num_refused
        num_refused -= 1
        if num_refused >= 0:
            raise BlockingIOError
        assert text == "0"
        restored.set()

    priority = LowPriority(tmp_path / "none")
    monkeypatch.setattr(priority, "_autogroup", SimpleNamespace(write_text=write_text))
    priority.end()
    assert restored.wait(60)
    assert not caplog.messages
    num_refused = 1000
    priority._restore_autogroup(num_tries=1)
    assert caplog.messages == ["The priority of the engine could not be restored."]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere threads have no nice value of their own")
def test_only_the_calling_thread_and_those_that_it_starts_get_a_lower_priority() -> None:
    before = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    found: list[int] = []

    def record() -> None:
        found.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))

    def lower() -> None:
        lower_thread_priority()
        record()
        child = threading.Thread(target=record)
        child.start()
        child.join()

    thread = threading.Thread(target=lower)
    thread.start()
    thread.join()
    record()
    lowered = max(10, before)  # the tests may run at a low priority themselves
    assert found == [lowered, lowered, before]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere threads have no nice value of their own")
def test_a_priority_that_is_lower_already_stays() -> None:
    lower = max(12, os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
    found: list[int] = []

    def lower_twice() -> None:
        for nice in (lower, lower - 2):
            lower_thread_priority(nice)
            found.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))

    thread = threading.Thread(target=lower_twice)
    thread.start()
    thread.join()
    assert found == [lower, lower]
