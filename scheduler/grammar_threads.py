"""GrammarThreads: threads for calls into the grammar library, whose duration is not known beforehand.

A process cannot end a call into a library. So a call that has used its processor time is given up: another thread
replaces its thread, which ends when the call does. (Such a thread must keep its priority: when its call ends it takes
the GIL, and the process would wait for a thread that hardly runs.)
"""

import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from typing import Any, Generic, TypeVar

MAX_GIVEN_UP = 2  # running calls of a key that were given up; until one ends, no other call of the key begins
MAX_WALL_FACTOR = 20  # times the limit of processor time: wall-clock limit of a call that waits
MAX_LOOK_SECONDS = 0.1  # counted between two checks at most, as the process may be stopped in between

T = TypeVar("T")


class CallTooSlow(Exception):
    """A call has used more processor time than its limit."""


class Call(Generic[T]):
    """One call and, once `is_done`, its result. Any thread may read it."""

    def __init__(self, key: str, function: Callable[[], T], limit_seconds: float, on_end: Callable[[], object]) -> None:
        self.key = key
        self.limit_seconds = limit_seconds  # of processor time
        self._on_end = on_end
        self._function: Callable[[], T] | None = function
        self._result: T | None = None
        self._error: BaseException | None = None
        self._done = threading.Event()

    @property
    def is_done(self) -> bool:
        """Whether there is a result or an error."""
        return self._done.is_set()

    def wait(self, timeout_seconds: float) -> bool:
        """Wait until it is done, timeout_seconds at most; return whether it is."""
        return self._done.wait(timeout_seconds)

    def result(self) -> T:
        """Return what the function returned or raise what it raised; CallTooSlow if it was given up."""
        assert self.is_done
        if self._error is not None:
            raise self._error
        return self._result  # type: ignore[return-value]  # None only of a function that returns it

    def cancel(self) -> None:
        """Drop the call if it has not begun; its result is not read."""
        self._function = None

    def run(self) -> None:
        """Call the function, unless the call was cancelled."""
        function, self._function = self._function, None
        result: T | None = None
        error: BaseException | None = None
        began_seconds = time.thread_time()
        try:
            result = function() if function is not None else None
        except BaseException as raised:  # a panic in the library is no Exception
            error = raised
        if time.thread_time() - began_seconds > self.limit_seconds:
            error = CallTooSlow()
        self._on_end()
        self._finish(result, error)

    def give_up(self) -> None:
        """Stop all waiting for the result; the function still runs."""
        self._finish(None, CallTooSlow())

    def _finish(self, result: T | None, error: BaseException | None) -> None:
        if not self.is_done:
            self._result, self._error = result, error
            self._done.set()


class _Worker:
    """A thread and the call it is in."""

    def __init__(self) -> None:
        self.call: Call[Any] | None = None
        self.is_given_up = False
        self.clock = 0  # of the thread's processor time
        self.used_seconds = 0.0  # on that clock, when the call began
        self.began_at_seconds = 0.0
        self.waited_seconds = 0.0  # since then, counted at each check


class GrammarThreads:
    """Threads that run calls, taking turns between API keys."""

    def __init__(
        self, num_threads: int, *, max_per_key: int | None = None, prepare: Callable[[], object] = lambda: None
    ) -> None:
        """At most `max_per_key` calls of one key run at once; None: as many as there are threads.

        `prepare` is called in each thread before its first call, outside the time of calls. It must not raise.
        """
        self._num_threads = num_threads
        self._prepare = prepare
        self._max_per_key = max_per_key or num_threads
        self._lines: OrderedDict[str, deque[Call[Any]]] = OrderedDict()  # by key; none is empty
        self._num_running: Counter[str] = Counter()  # by key, without calls that were given up
        self._num_given_up: Counter[str] = Counter()
        self._changed = threading.Condition()
        self._workers: list[_Worker] = []
        self._num_idle = 0
        self._looked_at_seconds = time.monotonic()

    def submit(
        self, key: str, function: Callable[[], T], limit_seconds: float, on_end: Callable[[], object]
    ) -> Call[T]:
        """Return a call of `function` that begins when a thread is free and the key has its turn.

        `on_end` is called in that thread when the function has really ended, also one that was given up or cancelled.
        """
        call = Call(key, function, limit_seconds, on_end)
        with self._changed:
            self._lines.setdefault(key, deque()).append(call)
            if not self._num_idle and len(self._workers) < self._num_threads:
                self._start_thread()
            self._changed.notify()
        return call

    def end_slow_calls(self) -> None:
        """Give up every call that has used its time; call it regularly."""
        now = time.monotonic()
        passed_seconds = min(now - self._looked_at_seconds, MAX_LOOK_SECONDS)
        self._looked_at_seconds = now
        with self._changed:
            for worker in [*self._workers]:
                call = worker.call
                if call is not None:
                    worker.waited_seconds += passed_seconds
                    if self._is_too_slow(worker, call, now):
                        self._give_up(worker, call)

    def _is_too_slow(self, worker: _Worker, call: Call[Any], now: float) -> bool:
        if now - worker.began_at_seconds <= call.limit_seconds:  # processor time is never more; saves a system call
            return False
        used_seconds = time.clock_gettime(worker.clock) - worker.used_seconds
        return used_seconds > call.limit_seconds or worker.waited_seconds > MAX_WALL_FACTOR * call.limit_seconds

    def _give_up(self, worker: _Worker, call: Call[Any]) -> None:
        call.give_up()
        worker.is_given_up = True
        self._workers.remove(worker)
        self._num_running[call.key] -= 1
        self._num_given_up[call.key] += 1
        self._start_thread()

    def _start_thread(self) -> None:
        worker = _Worker()
        self._workers.append(worker)
        threading.Thread(target=self._work, args=(worker,), daemon=True, name="grammar").start()

    def _work(self, worker: _Worker) -> None:
        self._prepare()
        worker.clock = time.pthread_getcpuclockid(threading.get_ident())
        while not worker.is_given_up:
            with self._changed:
                call = self._take()
                worker.used_seconds = time.thread_time()
                worker.began_at_seconds = time.monotonic()
                worker.waited_seconds = 0.0
                worker.call = call
            call.run()
            with self._changed:
                worker.call = None
                counts = self._num_given_up if worker.is_given_up else self._num_running
                counts[call.key] -= 1
                if counts[call.key] <= 0:
                    del counts[call.key]
                self._changed.notify()  # a call of this key may be waiting

    def _take(self) -> Call[Any]:
        """Wait for the next call and return it; the condition must be held."""
        self._num_idle += 1
        while (key := self._next_key()) is None:
            self._changed.wait()
        self._num_idle -= 1
        line = self._lines[key]
        call = line.popleft()
        self._lines.move_to_end(key)
        if not line:
            del self._lines[key]
        self._num_running[key] += 1
        return call

    def _next_key(self) -> str | None:
        for key in self._lines:
            if self._num_running[key] < self._max_per_key and self._num_given_up[key] < MAX_GIVEN_UP:
                return key
        return None
