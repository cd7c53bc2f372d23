"""GrammarThreads: calls that are given up when they take too long, and turns between keys."""

import threading
import time
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from caravan.scheduler import grammar_threads
from caravan.scheduler.grammar_threads import Call, CallTooSlow, GrammarThreads


class Busy:
    """A call that computes until it is let go."""

    def __init__(self) -> None:
        self.began = threading.Event()
        self.may_end = False

    def __call__(self) -> str:
        self.began.set()
        while not self.may_end:
            pass
        return "late"


@pytest.fixture
def busy() -> Iterator[Busy]:
    call = Busy()
    yield call
    call.may_end = True


def submit(
    threads: GrammarThreads, function: Callable[[], str], key: str = "", limit_seconds: float = 5.0
) -> Call[str]:
    return threads.submit(key, function, limit_seconds, on_end=lambda: None)


def result(call: Call[str]) -> str:
    assert call.wait(60)
    return call.result()


def end_slow_calls_until(threads: GrammarThreads, condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20.0
    while not condition():
        threads.end_slow_calls()
        time.sleep(0.005)
        assert time.monotonic() < end


def test_a_call_returns_or_raises_what_its_function_does() -> None:
    threads = GrammarThreads(2)
    assert result(submit(threads, lambda: "a")) == "a"
    with pytest.raises(ZeroDivisionError):
        result(submit(threads, lambda: str(1 / 0)))
    assert result(submit(threads, lambda: "b")) == "b"


def test_threat_27_a_call_that_has_used_its_time_is_given_up_and_its_thread_replaced(busy: Busy) -> None:
    threads = GrammarThreads(1)
    slow = submit(threads, busy, limit_seconds=0.05)
    after = submit(threads, lambda: "a")
    end_slow_calls_until(threads, lambda: slow.is_done)
    with pytest.raises(CallTooSlow):
        slow.result()
    assert result(after) == "a"
    busy.may_end = True
    assert result(submit(threads, lambda: "b")) == "b"
    with pytest.raises(CallTooSlow):
        slow.result()


def test_a_call_that_ended_after_its_limit_is_too_slow() -> None:
    threads = GrammarThreads(1)
    with pytest.raises(CallTooSlow):
        result(submit(threads, lambda: str(sum(range(100_000))), limit_seconds=1e-5))


def test_a_call_that_waits_uses_no_time() -> None:
    threads = GrammarThreads(1)
    waiting = threading.Event()
    call = submit(threads, lambda: str(waiting.wait()), limit_seconds=0.1)
    for _ in range(40):
        threads.end_slow_calls()
        time.sleep(0.01)
    assert not call.is_done
    waiting.set()
    assert result(call) == "True"


def test_threat_27_a_call_that_neither_ends_nor_computes_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammar_threads, "MAX_WALL_FACTOR", 2)
    threads = GrammarThreads(1)
    waiting = threading.Event()
    call = submit(threads, lambda: str(waiting.wait()), limit_seconds=0.05)
    end_slow_calls_until(threads, lambda: call.is_done)
    waiting.set()


def test_time_between_two_checks_counts_up_to_a_maximum(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammar_threads, "MAX_WALL_FACTOR", 2)
    threads = GrammarThreads(1)
    waiting = threading.Event()
    call = submit(threads, lambda: str(waiting.wait()), limit_seconds=0.1)
    threads.end_slow_calls()
    time.sleep(0.5)  # as if the process had been stopped
    threads.end_slow_calls()
    assert not call.is_done
    waiting.set()
    assert result(call) == "True"


def test_a_thread_is_prepared_before_its_first_call() -> None:
    order: list[str] = []
    threads = GrammarThreads(1, prepare=lambda: order.append("prepared"))

    def call() -> str:
        order.append("called")
        return "a"

    for _ in range(2):
        result(submit(threads, call))
    assert order == ["prepared", "called", "called"]


def test_threat_27_keys_take_turns_and_none_has_all_threads(busy: Busy) -> None:
    threads = GrammarThreads(2, max_per_key=1)
    submit(threads, busy, "a")
    assert busy.began.wait(60)
    order: list[str] = []

    def run(name: str) -> str:
        order.append(name)
        return name

    mine = [submit(threads, partial(run, name), "a") for name in "xy"]
    assert result(submit(threads, lambda: "b", "b")) == "b"
    assert order == []
    busy.may_end = True
    assert [result(call) for call in mine] == ["x", "y"]
    assert order == ["x", "y"]


def test_threat_27_a_key_with_calls_that_do_not_end_waits_for_them_alone(
    monkeypatch: pytest.MonkeyPatch, busy: Busy
) -> None:
    monkeypatch.setattr(grammar_threads, "MAX_GIVEN_UP", 1)
    threads = GrammarThreads(1)
    slow = submit(threads, busy, "a", limit_seconds=0.02)
    end_slow_calls_until(threads, lambda: slow.is_done)
    mine = submit(threads, lambda: "a", "a")
    assert result(submit(threads, lambda: "b", "b")) == "b"
    assert not mine.is_done
    busy.may_end = True
    assert result(mine) == "a"


def test_a_cancelled_call_does_not_begin_and_its_end_is_counted(busy: Busy) -> None:
    threads = GrammarThreads(1)
    submit(threads, busy)
    ended = threading.Event()
    calls: list[str] = []
    call = threads.submit("", lambda: calls.append("ran"), 5.0, on_end=ended.set)
    call.cancel()
    busy.may_end = True
    assert ended.wait(60)
    assert calls == []
