"""WorkerPool: worker processes of one kind, started on demand and reused."""

import logging
import threading
from collections.abc import Callable
from typing import TypeVar

from caravan.server.sandbox.special_tokens import Json
from caravan.server.sandbox.worker_process import WorkerLost, WorkerProcess

T = TypeVar("T")

logger = logging.getLogger(__name__)


class WorkerUnavailable(Exception):
    """Two workers in a row were lost during a request, or the pool is closed; the request is not the cause."""


class WorkerPool:
    """One worker for each concurrent call; thread-safe."""

    def __init__(self, start: Callable[[], WorkerProcess]) -> None:
        """`start` returns a new worker."""
        self._start = start
        self._lock = threading.Lock()  # for the fields below; never held during a call
        self._idle: list[WorkerProcess] = []
        self._busy: set[WorkerProcess] = set()
        self._is_closed = False

    @property
    def pids(self) -> list[int]:
        """The process ids of all workers."""
        with self._lock:
            return [worker.pid for worker in (*self._idle, *self._busy)]

    def call(self, request: dict[str, Json]) -> dict[str, str]:
        """Return a worker's reply; if the worker is lost, the call is repeated once with another one.

        Raises TimeLimitExceeded, MemoryLimitExceeded or WorkerUnavailable.
        """
        return _retried(lambda: self._call(request))

    def start_one(self) -> None:
        """Start a worker before the first call; raises WorkerUnavailable."""
        worker = _retried(self._start)
        with self._lock:
            self._idle.append(worker)

    def close(self) -> None:
        """End all workers, busy ones included, and start no more."""
        with self._lock:
            self._is_closed = True
            idle, self._idle = self._idle, []
            for worker in self._busy:
                worker.kill()  # the calling thread closes it
        for worker in idle:
            worker.close()

    def _call(self, request: dict[str, Json]) -> dict[str, str]:
        worker = self._acquire()
        try:
            reply = worker.call(request)
        except BaseException:
            with self._lock:
                self._busy.discard(worker)
            worker.close()
            raise
        with self._lock:
            self._busy.discard(worker)
            if not self._is_closed:
                self._idle.append(worker)
                return reply
        worker.close()
        return reply

    def _acquire(self) -> WorkerProcess:
        """Return an idle worker or a new one, for exclusive use by the caller."""
        with self._lock:
            idle = self._idle.pop() if self._idle else None
        worker = self._start() if idle is None else idle
        with self._lock:
            if not self._is_closed:
                self._busy.add(worker)
                return worker
        worker.close()
        raise WorkerUnavailable("the server is shutting down")


def _retried(use: Callable[[], T]) -> T:
    """Return the result of `use`, called again if its worker is lost; raises WorkerUnavailable."""
    try:
        return use()
    except WorkerLost as error:
        logger.warning("A worker process was lost (%s); retrying with another one.", error)
    try:
        return use()
    except WorkerLost as error:
        raise WorkerUnavailable(str(error)) from None
