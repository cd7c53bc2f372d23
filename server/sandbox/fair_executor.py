"""FairExecutor: a few threads for blocking calls, with a bounded queue in which API keys take turns."""

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
    """A key has as many calls waiting as it may have; the text names the fact."""

    def __init__(self, num_waiting: int, what: str, retry_after_seconds: float) -> None:
        super().__init__(f"{num_waiting} {what} of this key are waiting already, the limit.")
        self.retry_after_seconds = retry_after_seconds


class FairExecutor:
    """Runs blocking calls in threads, at most `max_running_per_key` of one key at a time.

    With `max_running_per_key` below `num_threads` one key never takes the last thread, so a call of another key begins
    at once, however long the calls of the first take. Waiting calls begin in turns between keys, and in order within a
    key. All methods must be called on one event loop. Threads start with the first calls.
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
        """`what` names the calls in errors (plural); `seconds_per_call` bounds one, for the time to retry after.

        None for `max_waiting_per_key`: something else bounds them. `niceness`, see nice(2), lets others go first.
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
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()  # the next key first

    async def run(self, key: str, call: Callable[[], T]) -> T:
        """Return what `call` returns in a thread, when it is the key's turn; raises ExecutorFull.

        A caller that is cancelled while its call runs leaves the thread occupied until the call returns.
        """
        if self._may_begin(key):
            self._running[key] += 1
        else:
            await self._turn(key)
        loop = asyncio.get_running_loop()
        try:
            result = self._threads.submit(call)
        except BaseException:  # the executor is closed
            self._end(key)
            raise

        def end(_: "Future[T]") -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
                loop.call_soon_threadsafe(self._end, key)

        result.add_done_callback(end)
        return await asyncio.wrap_future(result)

    def close(self) -> None:
        """Begin no more calls; threads end with the calls they run."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _may_begin(self, key: str) -> bool:
        return self._running.total() < self._num_threads and self._running[key] < self._max_running_per_key

    async def _turn(self, key: str) -> None:
        """Wait until a thread is the caller's."""
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
            else:  # its turn came at the same moment
                self._end(key)
            raise

    def _end(self, key: str) -> None:
        """Free a thread, and give free threads to the keys whose turn it is."""
        self._running[key] -= 1
        if not self._running[key]:
            del self._running[key]
        for waiting_key, queue in [*self._waiting.items()]:
            while queue and queue[0].cancelled():
                queue.popleft()
            if queue and self._may_begin(waiting_key):
                self._running[waiting_key] += 1
                queue.popleft().set_result(None)
                self._waiting.move_to_end(waiting_key)
            if not queue:
                del self._waiting[waiting_key]


def _be_nice(niceness: int) -> None:
    """Lower the priority of the calling thread, and of those it starts."""
    if sys.platform == "linux":  # elsewhere it would be the whole process
        os.nice(niceness)
