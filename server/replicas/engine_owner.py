"""EngineOwner: the replica's side. It owns an engine process and shares it between API processes."""

import asyncio
import itertools
import logging
import time
from collections.abc import AsyncGenerator
from functools import partial

import msgspec

from caravan.scheduler.messages import (
    Abort,
    AdapterChecked,
    BatchBegins,
    EngineReady,
    EngineSnapshot,
    Request,
    SequenceEvent,
    StartEngine,
    StepOutput,
    Subscribe,
    WhileRunning,
)
from caravan.server.engine.client import FIRST_PAUSE_SECONDS, HANG_SECONDS, MAX_PAUSE_SECONDS
from caravan.server.engine.loop_clock import LoopClock, Silence
from caravan.server.engine.process import ENGINE_PROGRAM, EngineProcess, EngineStartFailed, start_of_replacement
from caravan.server.replicas.own_snapshot import own_snapshot
from caravan.server.replicas.replica import Draining, FromReplica, ReplicaLost, ReplicaMessages, ToReplica

CLIENT_SILENCE_SECONDS = 30.0  # after which a connected API process is taken for dead, and its requests are aborted
DRAIN_PERIOD_SECONDS = 0.05  # between two looks at whether requests are left

logger = logging.getLogger(__name__)


class Connection:
    """The messages that wait for one API process, and the numbers that its requests have in the engine."""

    def __init__(self, clock: LoopClock) -> None:
        self.silence = Silence(clock)
        self.engine_ids: dict[int, int] = {}  # by its own numbers
        self.period_seconds = 0.0  # of snapshots
        self._messages: list[FromReplica] = []
        self._has_messages = asyncio.Event()
        self._is_closed = False

    def put(self, message: FromReplica) -> None:
        """Send a message soon."""
        self._messages.append(message)
        self._has_messages.set()

    def close(self) -> None:
        """End the connection after the messages before."""
        self._is_closed = True
        self._has_messages.set()

    async def bodies(self) -> AsyncGenerator[bytes, None]:
        """Yield all messages, those that came together in one body."""
        while True:
            await self._has_messages.wait()
            self._has_messages.clear()
            messages, self._messages = self._messages, []
            if messages:
                sent = ReplicaMessages(sent_at_seconds=time.monotonic(), messages=messages)
                yield msgspec.msgpack.encode(sent)
            if self._is_closed:
                return


class EngineOwner:
    """Starts an engine process, and another one with the same limits whenever it ends or hangs.

    It does not resume requests: when the engine ends, all connections end at once, so that API processes can resume
    their requests on other replicas. Several API processes can be connected; each gets its own outputs and events, the
    statistics of all steps, and snapshots in which the requests of others have no number.
    """

    def __init__(
        self, start: StartEngine, program: tuple[str, ...] = ENGINE_PROGRAM, *, hang_seconds: float = HANG_SECONDS
    ) -> None:
        """`run` starts the process."""
        self.report: EngineReady | None = None  # of the present engine, None while there is none
        self.is_draining = False
        self._start = start
        self._program = program
        self._hang_seconds = hang_seconds
        self._clock = LoopClock()
        self._silence = Silence(self._clock)
        self._process: EngineProcess | None = None
        self._stopping: asyncio.Future[str] | None = None  # the end of the latest process
        self._has_report = asyncio.Event()
        self._failure: EngineStartFailed | None = None  # of the first start
        self._connections: dict[str, Connection] = {}
        self._requests: dict[int, tuple[str, int, int]] = {}  # engine's number: connection, its number, queued tokens
        self._engine_ids = itertools.count(1)
        self._decoder: msgspec.msgpack.Decoder[list[ToReplica]] = msgspec.msgpack.Decoder(list[ToReplica])

    @property
    def pid(self) -> int:
        """The process id of the engine."""
        assert self._process is not None, "`ready` has returned"
        return self._process.pid

    @property
    def num_requests(self) -> int:
        """The number of unfinished requests."""
        return len(self._requests)

    def num_queued_tokens(self) -> int:
        """Return the prompt tokens, and output tokens at most, of the requests without a first token."""
        return sum(num_tokens for _, _, num_tokens in self._requests.values())

    async def run(self) -> None:
        """Start engines, one after the other; returns only if the first one cannot start. Cancel it at the end."""
        pause_seconds = FIRST_PAUSE_SECONDS
        checks = asyncio.create_task(self._check())
        try:
            while True:
                try:
                    self._process = process = EngineProcess(self._start, self._on_message, self._program)
                    report = await process.ready()
                except EngineStartFailed as error:
                    if not self._start.is_replacement:
                        self._failure = error
                        self._has_report.set()
                        return
                    await self._end_engine()
                    pause_seconds = min(2 * pause_seconds, MAX_PAUSE_SECONDS)
                    logger.error("The engine failed to start; retrying in %g seconds: %s", pause_seconds, error)
                    await asyncio.sleep(pause_seconds)
                    continue
                pause_seconds = FIRST_PAUSE_SECONDS
                self._begin(report)
                await process.ended()
                cause = await self._end_engine()
                logger.error("The engine process ended (%s); restarting it.", cause)
        finally:
            checks.cancel()
            await self._end_engine()

    async def ready(self) -> EngineReady:
        """Return the report of the engine when it has loaded; raises EngineStartFailed if the first one cannot."""
        await self._has_report.wait()
        if self._failure is not None:
            raise self._failure
        assert self.report is not None
        return self.report

    async def messages(self, connection: str) -> AsyncGenerator[bytes, None]:
        """Connect an API process and yield what `Replica.messages` does."""
        report = await self.ready()
        opened = self._connections[connection] = Connection(self._clock)
        opened.put(report)
        if self.is_draining:
            opened.put(Draining())
        try:
            async for body in opened.bodies():
                yield body
        finally:
            self._disconnect(connection)

    def receive(self, connection: str, body: bytes) -> None:
        """Pass messages of an API process to the engine; raises ReplicaLost if its connection has ended."""
        opened, process = self._connections.get(connection), self._process
        if opened is None or process is None:
            raise ReplicaLost("the connection has ended")
        opened.silence.end()
        for message in self._decoder.decode(body):
            match message:
                case Request():
                    engine_id = next(self._engine_ids)
                    opened.engine_ids[message.request_id] = engine_id
                    num_tokens = len(message.prompt_token_ids) + message.params.max_tokens
                    self._requests[engine_id] = (connection, message.request_id, num_tokens)
                    process.send(msgspec.structs.replace(message, request_id=engine_id))
                case Abort(request_id=request_id):
                    if (known := opened.engine_ids.pop(request_id, None)) is not None:
                        del self._requests[known]
                        process.send(Abort(request_id=known))
                case Subscribe(period_seconds=period_seconds):
                    opened.period_seconds = period_seconds
                    self._subscribe()

    async def drain(self, timeout_seconds: float) -> None:
        """Tell the API processes to send no more requests, and wait for those that run."""
        self.is_draining = True
        for opened in self._connections.values():
            opened.put(Draining())
        for _ in range(round(timeout_seconds / DRAIN_PERIOD_SECONDS)):
            if not self._requests:
                return
            await asyncio.sleep(DRAIN_PERIOD_SECONDS)

    def _begin(self, report: EngineReady) -> None:
        """Accept connections to an engine that has loaded; a later one gets the same limits."""
        self._start = start_of_replacement(self._start, report)
        self._silence.end()
        self.report = report
        self._has_report.set()

    async def _end_engine(self) -> str:
        """End the process and all connections; return its exit status as text."""
        if self._process is not None:
            self._stopping = asyncio.ensure_future(self._process.stop())
        self._process = self.report = None
        if self._start.is_replacement:
            self._has_report.clear()
        connections, self._connections = self._connections, {}
        for opened in connections.values():
            opened.close()
        self._requests.clear()
        return await asyncio.shield(self._stopping) if self._stopping is not None else ""

    def _disconnect(self, connection: str) -> None:
        """Abort the requests of a connection that has ended."""
        opened = self._connections.pop(connection, None)
        if opened is None:
            return
        for engine_id in opened.engine_ids.values():
            del self._requests[engine_id]
            if self._process is not None:
                self._process.send(Abort(request_id=engine_id))
        opened.close()
        if opened.period_seconds:
            self._subscribe()

    def _subscribe(self) -> None:
        """Let the engine send snapshots as often as the API process that wants most."""
        periods = [one.period_seconds for one in self._connections.values() if one.period_seconds]
        if self._process is not None:
            self._process.send(Subscribe(period_seconds=min(periods, default=0.0)))

    def _on_message(self, message: WhileRunning) -> None:
        self._silence.end()
        for name, opened in self._connections.items():
            match message:
                case StepOutput():
                    opened.put(self._step_for(name, message))
                case BatchBegins(request_ids=request_ids):
                    opened.put(BatchBegins(request_ids=self._own_ids(name, request_ids)))
                case EngineSnapshot():
                    if opened.period_seconds:
                        opened.put(own_snapshot(message, partial(self._own_id, name)))
                case AdapterChecked():  # replicas are asked for none
                    pass
                case _:
                    opened.put(message)
        if isinstance(message, StepOutput):
            self._count(message)

    def _own_id(self, name: str, engine_id: int) -> int:
        """Return the number that a connection gave to a request, 0 if it is not its own."""
        owner, request_id, _ = self._requests.get(engine_id, ("", 0, 0))
        return request_id if owner == name else 0

    def _own_ids(self, name: str, engine_ids: list[int]) -> list[int]:
        return [own_id for engine_id in engine_ids if (own_id := self._own_id(name, engine_id))]

    def _step_for(self, name: str, output: StepOutput) -> StepOutput:
        """Return a step as one connection gets it: only its own outputs and events."""
        outputs = [
            msgspec.structs.replace(one, request_id=own_id)
            for one in output.outputs
            if (own_id := self._own_id(name, one.request_id))
        ]
        events: list[SequenceEvent] = [
            msgspec.structs.replace(one, request_id=own_id)
            for one in output.events
            if (own_id := self._own_id(name, one.request_id))
        ]
        return StepOutput(outputs=outputs, stats=output.stats, events=events)

    def _count(self, output: StepOutput) -> None:
        """Forget requests that have ended; those with a token are queued no more."""
        for one in output.outputs:
            if (known := self._requests.get(one.request_id)) is None:
                continue
            connection, request_id, num_tokens = known
            if one.finish_reason is not None:
                del self._requests[one.request_id]
                self._connections[connection].engine_ids.pop(request_id)
            elif num_tokens and one.token_ids:
                self._requests[one.request_id] = (connection, request_id, 0)

    async def _check(self) -> None:
        """Kill an engine that hangs, and leave API processes that have ended without a word."""
        async for late_seconds in self._clock.ticks():
            self._silence.excuse(late_seconds)
            process = self._process
            if process is not None and self.report is not None and self._silence.seconds() > self._hang_seconds:
                logger.error("The engine process sent no heartbeat for %g seconds; killing it.", self._hang_seconds)
                process.kill()
            for name, opened in [*self._connections.items()]:
                opened.silence.excuse(late_seconds)
                if opened.silence.seconds() > CLIENT_SILENCE_SECONDS:
                    logger.warning("An API process was silent for %g seconds; leaving it.", CLIENT_SILENCE_SECONDS)
                    self._disconnect(name)
