"""FairExecutor: a thread pool for blocking calls, with a bounded queue that is round-robin over API keys."""

import asyncio
import contextlib
import os
import sys
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


class ExecutorFull(Exception):
    """A key has reached its limit of waiting calls; the text states the fact."""

    def __init__(self, num_waiting: int, what: str, retry_after_seconds: float) -> None:
        super().__init__(f"This key is at its limit of {num_waiting} waiting {what}.")
        self.retry_after_seconds = retry_after_seconds


class FairExecutor:
    """Runs blocking calls in threads, at most `max_running_per_key` of one key at a time.

    If `max_running_per_key` is below `num_threads`, one key never occupies the last thread, so a call of another key
    starts at once. Waiting calls start round-robin over keys, first in, first out within a key. All methods must be
    called on one event loop. Threads are started on demand.
    """

    def __init__(
        self,
        what: str,
        *,
        num_threads: int,
        max_running_per_key: int,
        max_waiting_per_key: int | None,
        seconds_per_call: float,
        niceness: int = 0,
    ) -> None:
        """`what` names the calls in errors (plural); `seconds_per_call` is the longest call, for the retry time.

        With `max_waiting_per_key` None the queue is unbounded. `niceness` lowers the threads' priority, see nice(2).
        """
        self._what = what
        self._num_threads = num_threads
        self._max_running_per_key = max_running_per_key
        self._max_waiting_per_key = max_waiting_per_key
        self._seconds_per_call = seconds_per_call
        self._threads = ThreadPoolExecutor(
            num_threads, what.replace(" ", "-"), initializer=_be_nice, initargs=(niceness,)
        )
        self._running: Counter[str] = Counter()  # calls by key
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()  # the next key comes first

    async def run(self, key: str, call: Callable[[], T]) -> T:
        """Run `call` in a thread when it is the key's turn and return its result; raises ExecutorFull.

        If the caller is cancelled while the call runs, the thread stays occupied until the call returns.
        """
        if self._can_start(key):
            self._running[key] += 1
        else:
            await self._wait_for_turn(key)
        loop = asyncio.get_running_loop()
        try:
            result = self._threads.submit(call)
        except BaseException:  # the executor is closed
            self._end(key)
            raise

        def end(_: "Future[T]") -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(self._end, key)

        result.add_done_callback(end)
        return await asyncio.wrap_future(result)

    def close(self) -> None:
        """Start no more calls; each thread ends after its current call."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _can_start(self, key: str) -> bool:
        return self._running.total() < self._num_threads and self._running[key] < self._max_running_per_key

    async def _wait_for_turn(self, key: str) -> None:
        """Wait until a thread is free for the caller."""
        queue = self._waiting.setdefault(key, deque())
        if self._max_waiting_per_key is not None and len(queue) >= self._max_waiting_per_key:
            retry_after_seconds = len(queue) * self._seconds_per_call / self._max_running_per_key
            raise ExecutorFull(len(queue), self._what, retry_after_seconds)
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        queue.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                with contextlib.suppress(ValueError):  # `_end` may have removed it
                    queue.remove(turn)
            else:  # it got a thread at the same moment
                self._end(key)
            raise

    def _end(self, key: str) -> None:
        """Free a thread, and assign free threads to the next keys."""
        self._running[key] -= 1
        if not self._running[key]:
            del self._running[key]
        for waiting_key, queue in [*self._waiting.items()]:
            while queue and queue[0].cancelled():
                queue.popleft()
            if queue and self._can_start(waiting_key):
                self._running[waiting_key] += 1
                queue.popleft().set_result(None)
                self._waiting.move_to_end(waiting_key)
            if not queue:
                del self._waiting[waiting_key]


def _be_nice(niceness: int) -> None:
    """Lower the priority of the calling thread and of those that it starts."""
    if sys.platform == "linux":  # elsewhere it would affect the whole process
        os.nice(niceness)
