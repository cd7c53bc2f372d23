"""Low priority: of a process, which is restored, and of one thread."""

import os
import sys
import threading
from pathlib import Path

import pytest

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
    assert found == [10, 10, before]
