"""EngineClient: every request the engine works on, across the lives of the engine process."""

import asyncio
import itertools
import logging
import time

import msgspec

from caravan.scheduler.config import EngineConfig
from caravan.scheduler.messages import (
    Abort,
    BatchBegins,
    EngineLog,
    EngineReady,
    EngineSnapshot,
    Heartbeat,
    Request,
    StartEngine,
    StepOutput,
    Subscribe,
    WhileRunning,
)
from caravan.server.engine.in_flight import InFlightRequest, InFlightRequests
from caravan.server.engine.listener import EngineListener
from caravan.server.engine.output_queue import EngineDied, EngineUnavailable, OutputQueue
from caravan.server.engine.process import ENGINE_PROGRAM, EngineProcess, EngineStartFailed

READY_SILENCE_SECONDS = 2.0  # an engine beats twice a second, also in the middle of a step
HANG_SECONDS = 10.0  # of silence, until the engine is taken for hanging
WATCH_SECONDS = 0.25  # between two looks at the silence
LATE_SECONDS = 0.25  # an event loop that is later than that has stood still
FIRST_PAUSE_SECONDS = 0.1  # before the engine is started again; doubles with each failure
LONGEST_PAUSE_SECONDS = 30.0
MAX_DOWN_SECONDS = 120.0  # requests wait so long for an engine that does not start

logger = logging.getLogger(__name__)


class EngineClient:
    """Hands requests to the engine process and its outputs to their streams.

    If the process ends, or says nothing for too long, it is started again with the same limits and given every request
    that has not ended, behind the tokens that it has: the streams go on. Until then new requests are refused with
    EngineUnavailable.
    """

    def __init__(
        self,
        start: StartEngine,
        program: tuple[str, ...] = ENGINE_PROGRAM,
        *,
        hang_seconds: float = HANG_SECONDS,
    ) -> None:
        """Start the process, which runs `program`; `ready` tells when it has loaded."""
        self.listener = EngineListener()
        self.config: EngineConfig  # known once it is ready
        self._start = start
        self._program = program
        self._hang_seconds = hang_seconds
        self._process = EngineProcess(start, self._take, program)
        self._requests = InFlightRequests()
        self._request_ids = itertools.count(1)
        self._is_connected = False
        self._snapshot_period_seconds = 0.0
        self._heard_at_seconds = 0.0
        self._looked_at_seconds = 0.0  # when the event loop last came to look at the silence
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def is_ready(self) -> bool:
        """Whether the engine takes requests and has been heard lately."""
        return self._is_connected and self._silence_seconds() < READY_SILENCE_SECONDS

    @property
    def engine_pid(self) -> int:
        """The process id of the engine's present life."""
        return self._process.pid

    async def ready(self) -> EngineReady:
        """Return the report of the first life, and keep the engine going from now on; raises EngineStartFailed."""
        try:
            report = await self._process.ready()
        except EngineStartFailed:
            await self._process.stop()
            raise
        self.config = report.config
        # A later life gets what this one got, not a share of what happens to be free then.
        limits = msgspec.structs.replace(
            self._start.limits, kv_cache_memory_bytes=report.kv_cache_bytes, max_model_len=report.config.max_model_len
        )
        self._start = msgspec.structs.replace(self._start, limits=limits)
        self._connect()
        self._tasks = [asyncio.create_task(self._keep_going()), asyncio.create_task(self._watch())]
        return report

    def submit(self, request: Request, crash_group: int = 0) -> OutputQueue:
        """Return the stream of a new request, whose `request_id` is given here; raises EngineUnavailable.

        Requests of one `crash_group` other than 0 count as one when engines end again and again.
        """
        if not self.is_ready:
            raise EngineUnavailable
        stream = OutputQueue(next(self._request_ids), self._abort)
        request = msgspec.structs.replace(request, request_id=stream.request_id)
        self._requests.add(InFlightRequest(request, stream, crash_group or -stream.request_id))
        self._send_released()
        return stream

    def subscribe(self, period_seconds: float) -> None:
        """Have a view of the engine handed to the listener so often, 0: never; also of the engines to come."""
        self._snapshot_period_seconds = period_seconds
        if self._is_connected:
            self._process.send(Subscribe(period_seconds=period_seconds))

    async def stop(self) -> None:
        """End the process; streams still open fail with EngineDied."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._disconnect()
        self._requests.fail(EngineDied())
        await self._process.stop()

    def _abort(self, request_id: int) -> None:
        if self._requests.drop(request_id) and self._is_connected:
            self._process.send(Abort(request_id=request_id))
        self._send_released()

    def _send_released(self) -> None:
        """Give the engine what it is to work on now."""
        if self._is_connected:
            for live in self._requests.released():
                self._process.send(live.again())

    async def _keep_going(self) -> None:
        """Wait for the process to end, then give what it worked on to another one, for ever."""
        while True:
            await self._process.ended()
            began_seconds = time.monotonic()
            self._disconnect()
            num_requests = self._requests.lose_engine()
            cause = await self._process.stop()
            logger.error("The engine process ended (%s); starting it again for %d requests.", cause, num_requests)
            await self._start_again(began_seconds)
            down_seconds = time.monotonic() - began_seconds
            self.listener.on_replay(len(self._requests), down_seconds)
            logger.warning("The engine is back after %.1f seconds and goes on.", down_seconds)
            self._connect()

    async def _start_again(self, began_seconds: float) -> None:
        """Start a process, over and over until one has loaded; if that takes too long, requests do not wait for it."""
        pause_seconds = FIRST_PAUSE_SECONDS
        while True:
            self.listener.on_restart()
            await asyncio.sleep(pause_seconds)
            try:
                self._process = EngineProcess(self._start, self._take, self._program)
                await self._process.ready()
            except (EngineStartFailed, OSError) as error:
                await self._process.stop()
                pause_seconds = min(2 * pause_seconds, LONGEST_PAUSE_SECONDS)
                logger.error("The engine does not start; next try in %g seconds: %s", pause_seconds, error)
                if time.monotonic() - began_seconds > MAX_DOWN_SECONDS:
                    self._requests.fail(EngineDied())
            else:
                return

    async def _watch(self) -> None:
        """Kill a process that is silent for too long: it hangs."""
        self._looked_at_seconds = time.monotonic()
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            late_seconds, now = self._late_seconds(), time.monotonic()
            self._heard_at_seconds = min(self._heard_at_seconds + late_seconds, now)
            self._looked_at_seconds = now
            if self._is_connected and self._silence_seconds() > self._hang_seconds:
                logger.error("The engine process has been silent for %.0f seconds; ending it.", self._silence_seconds())
                self._process.kill()

    def _take(self, message: WhileRunning) -> None:
        self._heard_at_seconds = time.monotonic()
        match message:
            case StepOutput(outputs=outputs):
                self.listener.on_step(message)
                for output in outputs:
                    self._requests.put(output)
                if self._requests.is_holding:
                    self._send_released()
            case BatchBegins(request_ids=request_ids):
                self._requests.begin_batch(request_ids)
            case EngineLog(level=level, text=text):
                logger.log(level, "%s", text)
            case EngineSnapshot():
                self.listener.on_snapshot(message)
            case Heartbeat():
                pass

    def _connect(self) -> None:
        self._heard_at_seconds = self._looked_at_seconds = time.monotonic()
        self._is_connected = True
        if self._snapshot_period_seconds:
            self.subscribe(self._snapshot_period_seconds)
        self._send_released()

    def _disconnect(self) -> None:
        self._is_connected = False
        self.listener.on_disconnect()

    def _silence_seconds(self) -> float:
        """Return for how long nothing has come from the engine while this process listened."""
        return time.monotonic() - self._heard_at_seconds - self._late_seconds()

    def _late_seconds(self) -> float:
        """Return for how long this process has stood still: what the engine said meanwhile is still to be read."""
        late_seconds = time.monotonic() - self._looked_at_seconds - WATCH_SECONDS
        return late_seconds if late_seconds > LATE_SECONDS else 0.0
