"""LocalEngine: an engine in this process, for one program instead of a server."""

import itertools
import os
import queue
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import msgspec

from caravan.model.sampling.sampling_params import SamplingParams
from caravan.scheduler.messages import Abort, EngineReady, Request, SequenceOutput, StartEngine, StepStats
from caravan.server.engine.output_queue import OutputQueue
from caravan.server.engine.process import engine_environment

if TYPE_CHECKING:
    from caravan.scheduler.engine import Engine


class LocalEngine:
    """An engine that runs one step at a time in its own thread, and only on request.

    Callers that wait at the same time share a step, so their sequences share the batch. Between two steps nothing
    changes, so the scheduler and the pool can be inspected. An exception in the caller's thread, such as Ctrl-C, never
    interrupts a step.
    """

    def __init__(self, start: StartEngine) -> None:
        """Load the model; raises ValueError (a broken model, limits that do not fit), OSError or MemoryError.

        PyTorch is imported here, after the environment variables for its threads are set. If the program has imported
        PyTorch before, they have no effect: with other processes on the same cores a step can then take ten times as
        long.
        """
        self._thread = ThreadPoolExecutor(1, "caravan-engine")
        self._inbox: queue.SimpleQueue[Request | Abort] = queue.SimpleQueue()
        self._streams: dict[int, _SharedStream] = {}  # of the requests that have not ended
        self._request_ids = itertools.count(1)
        self._lock = threading.Lock()  # of the two below
        self._step: Future[None] | None = None  # the latest one
        self._engine: Engine | None = None
        self.report: EngineReady
        if "torch" not in sys.modules:
            os.environ |= engine_environment(os.environ)
        from caravan.scheduler.loaded_model import start_engine

        try:
            self._engine, self.report, _ = self._thread.submit(start_engine, start).result()
        except BaseException:
            self.close()
            raise

    @property
    def engine(self) -> "Engine":
        """The engine; raises RuntimeError after `close`."""
        if self._engine is None:
            raise RuntimeError("The engine is closed.")
        return self._engine

    def submit(
        self, prompt_token_ids: list[int], params: SamplingParams, on_news: Callable[[], None], group: int = 0
    ) -> OutputQueue:
        """Return the stream of a new request, which begins with the next step; choices of one prompt share a `group`.

        `on_news` is called in the engine's thread when there is something to take.
        """
        return self.add(Request(prompt_token_ids=prompt_token_ids, params=params, group=group), on_news)

    def add(self, request: Request, on_news: Callable[[], None]) -> OutputQueue:
        """Do the same with a request, whose `request_id` is assigned here."""
        stream = _SharedStream(next(self._request_ids), self._abort)
        stream.on_output = on_news
        self._streams[stream.request_id] = stream
        self._inbox.put(msgspec.structs.replace(request, request_id=stream.request_id))
        return stream

    def step(self) -> "Future[None]":
        """Return the step that is running, or else a new one; its outputs are in the streams when it is done.

        Raises RuntimeError after `close`.
        """
        with self._lock:
            engine = self.engine
            if self._step is None or self._step.done():
                self._step = self._thread.submit(self._run_step, engine)
            return self._step

    def stats(self) -> StepStats:
        """Return queue, batch and pool as they are between two steps; waits for the one that is running."""
        with self._lock:
            stats = self._thread.submit(self._stats, self.engine)
        return stats.result()

    def close(self) -> None:
        """End the thread, after the step that is running, and give the memory back."""
        with self._lock:
            engine, self._engine = self._engine, None
        self._thread.shutdown()
        if engine is not None:
            engine.close()

    def _abort(self, request_id: int) -> None:
        # Without a lock: the garbage collector may end a stream in the middle of any call of this class.
        self._streams.pop(request_id, None)
        self._inbox.put(Abort(request_id=request_id))  # taken before the next step, or by stats()

    def _stats(self, engine: "Engine") -> StepStats:
        self._take_messages(engine)
        return engine.scheduler.stats()

    def _take_messages(self, engine: "Engine") -> None:
        """Pass the requests and aborts since the last step to the scheduler."""
        while not self._inbox.empty():
            message = self._inbox.get()
            if isinstance(message, Request):
                engine.add(message)
            else:
                engine.scheduler.abort(message.request_id)

    def _run_step(self, engine: "Engine") -> None:
        from caravan.scheduler.memory_shortage import step_with_room  # PyTorch is imported by now

        self._take_messages(engine)
        for output in step_with_room(engine).outputs:
            stream = self._streams.get(output.request_id)
            if stream is None:  # aborted during the step
                continue
            if output.finish_reason is not None:
                self._streams.pop(output.request_id, None)
            stream.put(output)


class _SharedStream(OutputQueue):
    """A stream that the engine's thread writes and another one reads."""

    def __init__(self, *args: object) -> None:
        super().__init__(*args)  # type: ignore[arg-type]  # they are those of OutputQueue
        self._lock = threading.RLock()  # see LocalEngine._abort

    def put(self, output: SequenceOutput) -> None:
        with self._lock:
            super().put(output)

    def abort(self) -> None:
        with self._lock:
            super().abort()

    def take(self) -> SequenceOutput | None:
        with self._lock:
            return super().take()
