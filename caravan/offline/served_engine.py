"""ServedEngine: a local engine as the endpoints of a server use it."""

import asyncio
import itertools
from collections import deque
from functools import partial

from caravan.offline.engine import LocalEngine
from caravan.scheduler.messages import EngineReady, Request
from caravan.server.engine.client import EngineState
from caravan.server.engine.output_queue import OutputQueue


class ServedEngine:
    """Runs steps of an engine in its thread while there are requests, and passes outputs on in the event loop.

    When a step raises an exception, the engine is not ready any more, and `failure` has it.
    """

    def __init__(self, local: LocalEngine) -> None:
        """Call it in an event loop."""
        self.failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._local = local
        self._numbers = itertools.count()
        self._news: deque[int] = deque()  # requests that may have something to take
        self._streams: dict[int, tuple[OutputQueue, OutputQueue]] = {}  # of the engine's thread, of the event loop
        self._stepping: asyncio.Task[None] | None = None

    @property
    def is_ready(self) -> bool:
        """Whether the engine accepts requests."""
        return not self.failure.done()

    @property
    def state(self) -> EngineState:
        """The model is loaded as long as there is an engine."""
        return "loaded"

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the engine."""
        return self._local.report.fingerprint

    @property
    def report(self) -> EngineReady:
        """The report of the engine."""
        return self._local.report

    def submit(self, request: Request, crash_group: int = 0) -> OutputQueue:  # noqa: ARG002  # a crash ends the process
        """Return the output queue of a new request."""
        number = next(self._numbers)
        stream = self._local.add(request, partial(self._news.append, number))
        outputs = OutputQueue(stream.request_id, lambda _: self._abort(number))
        self._streams[number] = stream, outputs
        if self._stepping is None or self._stepping.done():
            self._stepping = asyncio.create_task(self._step())
        return outputs

    async def _step(self) -> None:
        try:
            while self._streams:
                await asyncio.shield(asyncio.wrap_future(self._local.step()))
                self._take()
        except Exception as error:
            if not self.failure.done():
                self.failure.set_exception(error)

    def _take(self) -> None:
        while self._news:
            number = self._news.popleft()
            if number not in self._streams:  # aborted
                continue
            stream, outputs = self._streams[number]
            output = stream.take()
            if output is None:
                continue
            if output.finish_reason is not None:
                del self._streams[number]
            outputs.put(output)

    def _abort(self, number: int) -> None:
        stream, _ = self._streams.pop(number)
        stream.abort()
