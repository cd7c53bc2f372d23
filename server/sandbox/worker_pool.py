"""WorkerPool: worker processes of one kind, started as they are needed and used again."""

import logging
import threading
from collections.abc import Callable
from typing import TypeVar

from caravan.server.sandbox.special_tokens import Json
from caravan.server.sandbox.worker_process import WorkerLost, WorkerProcess

T = TypeVar("T")

logger = logging.getLogger(__name__)


class WorkerUnavailable(Exception):
    """Two workers in a row were lost with a question, or the pool is closed; that says nothing about the question."""


class WorkerPool:
    """As many workers as threads ask at a time; may be used from any thread."""

    def __init__(self, start: Callable[[], WorkerProcess]) -> None:
        """`start` returns a new worker."""
        self._start = start
        self._lock = threading.Lock()  # of the two below; never held while a worker is asked
        self._idle: list[WorkerProcess] = []
        self._busy: set[WorkerProcess] = set()
        self._is_closed = False

    @property
    def pids(self) -> list[int]:
        """The process ids of all workers."""
        with self._lock:
            return [worker.pid for worker in (*self._idle, *self._busy)]

    def ask(self, question: dict[str, Json]) -> dict[str, str]:
        """Return a worker's answer; one that is lost is replaced, once.

        Raises TimeLimitExceeded, MemoryLimitExceeded or WorkerUnavailable.
        """
        return _twice(lambda: self._ask(question))

    def start_one(self) -> None:
        """Start a worker before the first question; raises WorkerUnavailable."""
        worker = _twice(self._start)
        with self._lock:
            self._idle.append(worker)

    def close(self) -> None:
        """End all workers, also those that are asked; there will be no others."""
        with self._lock:
            self._is_closed = True
            idle, self._idle = self._idle, []
            for worker in self._busy:
                worker.kill()  # the thread that asks it closes it
        for worker in idle:
            worker.close()

    def _ask(self, question: dict[str, Json]) -> dict[str, str]:
        worker = self._taken()
        try:
            answer = worker.ask(question)
        except BaseException:
            with self._lock:
                self._busy.discard(worker)
            worker.close()
            raise
        with self._lock:
            self._busy.discard(worker)
            if not self._is_closed:
                self._idle.append(worker)
                return answer
        worker.close()
        return answer

    def _taken(self) -> WorkerProcess:
        """Return an idle worker or a new one, for the caller alone."""
        with self._lock:
            idle = self._idle.pop() if self._idle else None
        worker = self._start() if idle is None else idle
        with self._lock:
            if not self._is_closed:
                self._busy.add(worker)
                return worker
        worker.close()
        raise WorkerUnavailable("the server is ending")


def _twice(use: Callable[[], T]) -> T:
    """Return what `use` returns, at the second time if its worker is lost at the first; raises WorkerUnavailable."""
    try:
        return use()
    except WorkerLost as error:
        logger.warning("A worker process was lost (%s); another one takes its question.", error)
    try:
        return use()
    except WorkerLost as error:
        raise WorkerUnavailable(str(error)) from None
