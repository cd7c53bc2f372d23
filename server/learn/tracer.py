"""Tracer: the process that computes traces, started on demand and ended when nobody uses it."""

import asyncio
import logging
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from caravan.server.engine.process import engine_environment
from caravan.server.http.errors import ApiError, invalid, unavailable
from caravan.server.sandbox.fair_executor import FairExecutor
from caravan.server.sandbox.special_tokens import Json
from caravan.server.sandbox.worker_process import MemoryLimitExceeded, TimeLimitExceeded, WorkerLost, WorkerProcess

WORKER_MODULE = "caravan.scheduler.trace_worker"
IDLE_SECONDS = 60.0  # after which the process ends and its memory is free
TIME_LIMIT_SECONDS = 120.0  # processor time, to load the model and for each trace
WALL_LIMIT_SECONDS = 180.0
MEMORY_BYTES = 2**30  # beside the weights
MAX_WAITING_PER_KEY = 2  # traces
_NICENESS = 10  # the engine has priority

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TracedModel:
    """The files of a model, the length of its rotary table, and the folder of an adapter that is merged into it."""

    path: Path
    max_position: int
    adapter_path: Path | None = None


class Tracer:
    """Computes one trace at a time, in a process that holds one model in plain PyTorch, in float32.

    The process starts with the first trace, and ends after `idle_seconds` without any. It holds the weights a second
    time, so it refuses a model that does not fit into free memory. It also ends when the server ends, since its
    standard input then closes.
    """

    def __init__(
        self,
        *,
        idle_seconds: float = IDLE_SECONDS,
        start: Callable[[], WorkerProcess] | None = None,
    ) -> None:
        """`start` returns a new process with the interface of scheduler/trace_worker.py, by default that one."""
        self.models: dict[str, TracedModel] = {}  # by the first name of each
        self._idle_seconds = idle_seconds
        self._start = start or start_worker
        self._turns = FairExecutor(
            "traces",
            num_threads=1,
            max_running_per_key=1,
            max_waiting_per_key=MAX_WAITING_PER_KEY,
            seconds_per_call=5.0,
        )
        self._lock = threading.Lock()  # held while the worker is used
        self._worker: WorkerProcess | None = None
        self._loaded = ""  # the model of the worker
        self._timer: asyncio.TimerHandle | None = None
        self._is_closed = False

    @property
    def pids(self) -> list[int]:
        """The process id, if there is a process."""
        worker = self._worker
        return [] if worker is None else [worker.pid]

    async def trace(self, name: str, request: Mapping[str, Json], key_name: str) -> str:
        """Return the JSON text of a trace of the model with this name.

        Raises ExecutorFull if too many traces of the key wait, and ApiError if the process refuses the model or the
        request, exceeds a limit or is lost.
        """
        self._cancel_timer()
        try:
            return await self._turns.run(key_name, partial(self._call, name, dict(request)))
        finally:
            self._start_timer()

    def close(self) -> None:
        """End the process, and start no more."""
        self._is_closed = True
        self._cancel_timer()
        self._turns.close()
        worker = self._worker
        if worker is not None:
            worker.kill()  # a thread may wait for its reply
        with self._lock:
            self._end()

    def _start_timer(self) -> None:
        self._cancel_timer()
        if not self._is_closed:
            self._timer = asyncio.get_running_loop().call_later(self._idle_seconds, self._end_if_idle)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _end_if_idle(self) -> None:
        if not self._lock.acquire(blocking=False):  # a trace whose client has left
            self._start_timer()
            return
        # A large process takes seconds to end, and the event loop must not wait for it; the next trace does.
        try:
            threading.Thread(target=self._end_and_release, name="end-of-traces").start()
        except RuntimeError:  # the system has no thread left; the process stays until the next try
            self._lock.release()
            self._start_timer()

    def _end_and_release(self) -> None:
        try:
            self._end()
        finally:
            self._lock.release()

    def _end(self) -> None:
        if self._worker is not None:
            self._worker.close()
        self._worker, self._loaded = None, ""  # only now: `pids` has it until it has ended

    def _call(self, name: str, request: dict[str, Json]) -> str:
        """Return the reply of the process that has the model; runs in the only thread."""
        with self._lock:
            try:
                worker = self._worker_for(name)
                reply = worker.call(request)
            except TimeLimitExceeded:
                self._end()
                raise unavailable(
                    f"The trace takes more than {TIME_LIMIT_SECONDS:g} s of processor time. Send a shorter text."
                ) from None
            except MemoryLimitExceeded:
                self._end()
                raise unavailable("The memory for traces is used up. Send a shorter text.") from None
            except WorkerLost as error:
                self._end()
                logger.warning("The process of traces was lost: %s", error)
                raise unavailable("The process that computes traces was lost. Try again.") from None
        if "failed" in reply:
            raise invalid(reply["failed"], reply["param"])
        return reply["trace"]

    def _worker_for(self, name: str) -> WorkerProcess:
        """Return the process with this model in it, a new one if need be."""
        if self._worker is not None and self._loaded == name:
            return self._worker
        self._end()
        model = self.models[name]
        self._worker = worker = self._start()
        if self._is_closed:
            worker.kill()  # `close` was called before it could see this process
        adapter = str(model.adapter_path or "")
        reply = worker.call({"path": str(model.path), "adapter": adapter, "max_position": model.max_position})
        if "failed" in reply:
            self._end()
            raise _refused(reply)
        self._loaded = name
        return worker


def start_worker() -> WorkerProcess:
    """Return a new process of scheduler/trace_worker.py."""
    return WorkerProcess(
        WORKER_MODULE,
        TIME_LIMIT_SECONDS,
        MEMORY_BYTES,
        wall_limit_seconds=WALL_LIMIT_SECONDS,
        niceness=_NICENESS,
        options=("-P", "-m"),  # -P: modules in the current folder must not shadow those of the package
        environment=engine_environment(os.environ),
    )


def _refused(reply: dict[str, str]) -> ApiError:
    """Return the error of a model that the process did not load."""
    if reply["code"] == "too_large":
        text = f"{reply['failed']} Serve a smaller model, or free memory."
        return ApiError(503, text, kind="server_error", code="too_large")
    if reply["code"] == "unsupported":
        return ApiError(503, reply["failed"], kind="server_error", code="unsupported")
    logger.warning("The model cannot be traced: %s", reply["failed"])
    return ApiError(
        503,
        "The model's files cannot be read for traces; the cause is in the log.",
        kind="server_error",
        code="unreadable",
    )
