"""EngineClient: submit requests to the engine process, restart it when it fails, put it to sleep and wake it."""

import asyncio
import itertools
import logging
import time
from collections.abc import Callable
from typing import Literal

import msgspec

from caravan.scheduler.config import EngineConfig
from caravan.scheduler.messages import (
    Abort,
    AdapterChecked,
    BatchBegins,
    EngineLog,
    EngineReady,
    EngineSnapshot,
    Heartbeat,
    Request,
    StartEngine,
    StepOutput,
    Subscribe,
    ToEngine,
    WhileRunning,
)
from caravan.server.engine.adapter_list import AdapterList
from caravan.server.engine.in_flight import InFlightRequest, InFlightRequests
from caravan.server.engine.listener import EngineListener
from caravan.server.engine.loop_clock import LoopClock, Silence
from caravan.server.engine.output_queue import AdapterUnloaded, EngineDied, EngineUnavailable, OutputQueue
from caravan.server.engine.process import ENGINE_PROGRAM, EngineProcess, EngineStartFailed, start_of_replacement
from caravan.server.engine.standby import Standby

READY_SILENCE_SECONDS = 2.0  # an engine sends a heartbeat twice a second, also during a step
HANG_SECONDS = 10.0  # without a heartbeat, after which the engine is restarted
FIRST_PAUSE_SECONDS = 0.1  # doubles with each engine that fails to start; the next one is started after it
MAX_PAUSE_SECONDS = 30.0
STANDBY_DELAY_SECONDS = 3.0  # after a restart, before a standby is started: the new engine computes the texts again
MAX_DOWN_SECONDS = 120.0  # after which requests fail if the engine cannot be restarted

EngineState = Literal["loaded", "loading", "replacing", "asleep"]

logger = logging.getLogger(__name__)


class EngineClient:
    """Sends requests to the engine process, and its outputs to their queues.

    If the process ends or hangs, the standby takes over, or a new one is started with the same limits. It resumes every
    unfinished request after its last generated token, so streams continue. Requests that arrive meanwhile wait for it;
    they raise EngineUnavailable once no engine could be started for MAX_DOWN_SECONDS.

    With `on_demand` set, an engine can be put to sleep: its process ends. Requests then wait for `wake`; `on_demand` is
    called for each of them, and can raise an error for its client.
    """

    def __init__(
        self,
        start: StartEngine,
        program: tuple[str, ...] = ENGINE_PROGRAM,
        *,
        hang_seconds: float = HANG_SECONDS,
        standby_program: tuple[str, ...] | None = None,
        is_asleep: bool = False,
        name: str = "",
    ) -> None:
        """Start the process, which runs `program`, unless it `is_asleep`; `ready` returns when it has loaded.

        With a `standby_program`, a standby that runs it is kept from then on. Log lines carry the `name` of the model.
        """
        self.on_demand: Callable[[Request], None] | None = None
        self.listener = EngineListener()
        self.config: EngineConfig  # set by `ready`
        self.fingerprint = ""  # the same
        self.report: EngineReady | None = None  # the same
        self.standby: Standby | None = None
        if standby_program is not None:
            self.standby = Standby(
                lambda on_message: EngineProcess(self.adapters.in_start(self._start), on_message, standby_program), name
            )
        self._start, self._program = start, program
        self._requests = InFlightRequests()
        self.adapters = AdapterList(start.adapters, self._send, self._requests.adapters)
        self._hang_seconds = hang_seconds
        self._log = logging.LoggerAdapter(logger, {"model": name} if name else {})
        self._load_began_seconds: float | None = None  # of a process that loads the model
        self._load_seconds = 0.0  # that the latest load took
        self._process = None if is_asleep else self._load()  # None: asleep
        self._has_started = False  # `ready` has returned
        self._is_given_up = False  # no engine could be started for MAX_DOWN_SECONDS
        self._is_silent = False  # it was logged that no heartbeat comes
        self.is_postponing = False  # new requests wait for the next engine
        self._request_ids = itertools.count(1)
        self._is_connected = False
        self._snapshot_period_seconds, self._clock = 0.0, LoopClock()
        self._silence = Silence(self._clock)
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def is_ready(self) -> bool:
        """Whether an engine works on requests: it has sent a heartbeat recently, or can be woken."""
        if self.on_demand is not None and not self._has_started:
            return True
        return self._is_connected and self._silence.seconds() < READY_SILENCE_SECONDS

    @property
    def is_accepting(self) -> bool:
        """Whether new requests are accepted: they wait for an engine that is silent, being replaced or asleep."""
        return not self._is_given_up and (self._has_started or self.on_demand is not None)

    def is_standby_ready(self) -> bool:
        """Return whether a standby has loaded the model and waits."""
        return self.standby is not None and self.standby.is_ready

    @property
    def state(self) -> EngineState:
        """Whether an engine process has loaded the model, loads it, takes the place of another, or does not exist."""
        if self._process is None:
            return "asleep"
        if self._is_connected:
            return "loaded"
        return "replacing" if self._has_started else "loading"

    def start_seconds(self) -> float:
        """Return the expected time until the process is ready that loads the model, 0 if none does."""
        if self._load_began_seconds is None:
            return 0.0
        return max(self._load_seconds - (time.monotonic() - self._load_began_seconds), 0.0)

    @property
    def requests(self) -> InFlightRequests:
        """The unfinished requests."""
        return self._requests

    @property
    def engine_pid(self) -> int:
        """The process id of the current engine process."""
        assert self._process is not None, "it is not asleep"
        return self._process.pid

    async def ready(self) -> EngineReady:
        """Return the first process's report, and restart the engine when it fails; raises EngineStartFailed."""
        process = self._process
        assert process is not None, "it is not asleep"
        try:
            report = await process.ready()
        except EngineStartFailed:
            await process.stop()
            self._process = None
            raise
        self.config, self.fingerprint, self.report = report.config, report.fingerprint, report
        self._start = start_of_replacement(self._start, report)
        self._end_load()
        self._has_started = True
        self._connect()
        if self.standby is not None:
            self.standby.start()
        self._tasks = [asyncio.create_task(self._restart_when_ended()), asyncio.create_task(self._kill_when_hung())]
        return report

    async def wake(self) -> EngineReady:
        """Start a process for an engine that is asleep, and return as `ready` does; raises OSError, too."""
        self._process = self._load()
        return await self.ready()

    async def sleep(self) -> None:
        """End the process; requests from now on wait for `wake`. There must be no active requests."""
        self._has_started = self._is_given_up = False
        self.is_postponing = False
        self._requests.end_postponement()
        await self._end_process()

    def postpone(self, *, is_on: bool) -> None:
        """Let new requests wait for the next engine process, or no longer."""
        self.is_postponing = is_on
        if not is_on:
            self._requests.end_postponement()
            self._send_released()

    def submit(self, request: Request, crash_group: int = 0) -> OutputQueue:
        """Return the output queue of a new request, and assign its `request_id`.

        Crashes are counted together for all requests of a `crash_group` other than 0. Raises EngineUnavailable,
        AdapterUnloaded.
        """
        if not self.is_accepting:
            raise EngineUnavailable
        if request.adapter and not self.adapters.has(request.adapter):
            raise AdapterUnloaded(request.adapter)
        if self.on_demand is not None:
            self.on_demand(request)
        outputs = OutputQueue(next(self._request_ids), self._abort)
        request = msgspec.structs.replace(request, request_id=outputs.request_id)
        in_flight = InFlightRequest(request, outputs, crash_group or -outputs.request_id)
        self._requests.add(in_flight, is_postponed=self.is_postponing)
        self._send_released()
        return outputs

    def subscribe(self, period_seconds: float) -> None:
        """Send the listener a snapshot every `period_seconds`, also after restarts; 0 stops the snapshots."""
        self._snapshot_period_seconds = period_seconds
        self._send(Subscribe(period_seconds=period_seconds))

    async def stop(self) -> None:
        """End the process; open output queues fail with EngineDied."""
        self.on_demand = None
        self._has_started = False
        await self._end_process()
        self._requests.fail(EngineDied())

    async def _end_process(self) -> None:
        """End the process and its standby, if there are any."""
        self._disconnect()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        process, self._process = self._process, None
        await asyncio.gather(*[one.stop() for one in (process, self.standby) if one is not None])

    def _abort(self, request_id: int) -> None:
        if self._requests.drop(request_id):
            self._send(Abort(request_id=request_id))
        self.adapters.let_go()
        self._send_released()

    def _send(self, message: ToEngine) -> bool:
        """Send a message to the engine; return False if there is none now."""
        if not self._is_connected or self._process is None:
            return False
        self._process.send(message)
        return True

    def _send_released(self) -> None:
        """Send the requests that are ready for the engine."""
        if self._is_connected and self._process is not None:
            for request in self._requests.released():
                self._process.send(request.resumed())

    async def _restart_when_ended(self) -> None:
        """Wait for the process to end, then start another one that resumes its requests; repeat."""
        while self._process is not None:
            await self._process.ended()
            began_seconds = time.monotonic()
            self._disconnect()
            num_requests = self._requests.lose_engine()
            cause = await self._process.stop()
            self._log.error("The engine process ended (%s); restarting it for %d requests.", cause, num_requests)
            if not await self._take_over():
                await self._restart(began_seconds)
            down_seconds = time.monotonic() - began_seconds
            self.listener.on_replay(self._requests.num_active, down_seconds)
            self._log.warning("The engine was restarted after %.1f seconds; requests are resumed.", down_seconds)
            self._connect()
            if self.standby is not None:
                self.standby.start(STANDBY_DELAY_SECONDS)

    async def _take_over(self) -> bool:
        """Make the standby the engine; return False if there is none or it cannot."""
        process = await self.standby.take() if self.standby is not None else None
        if process is None:
            return False
        self.listener.on_restart()
        process.on_message = self._on_message
        self._process = process
        try:
            await process.take_over(self._hang_seconds)
        except (EngineStartFailed, TimeoutError) as error:
            self._log.error("The standby cannot take over: %s", str(error) or "It does not respond.")
            process.kill()
            await process.stop()
            return False
        self._log.warning("The standby has taken over.")
        return True

    async def _restart(self, began_seconds: float) -> None:
        """Start processes until one has loaded; fail the requests, and refuse new ones, if that takes too long."""
        pause_seconds = FIRST_PAUSE_SECONDS
        while True:
            self.listener.on_restart()
            try:
                self._process = process = self._load()
                await process.ready()
            except (EngineStartFailed, OSError) as error:
                if self._process is not None:
                    await self._process.stop()
                pause_seconds = min(2 * pause_seconds, MAX_PAUSE_SECONDS)
                self._log.error("The engine failed to start; retrying in %g seconds: %s", pause_seconds, error)
                if time.monotonic() - began_seconds > MAX_DOWN_SECONDS:
                    self._is_given_up = True
                    self._requests.fail(EngineDied())
                await asyncio.sleep(pause_seconds)
            else:
                self._end_load()
                return

    def _load(self) -> EngineProcess:
        """Start a process that loads the model."""
        self._load_began_seconds = time.monotonic()
        return EngineProcess(self.adapters.in_start(self._start), self._on_message, self._program)

    def _end_load(self) -> None:
        """Store how long the process took to load the model."""
        if self._load_began_seconds is not None:
            self._load_seconds = time.monotonic() - self._load_began_seconds
            self._load_began_seconds = None

    async def _kill_when_hung(self) -> None:
        """Kill a process whose heartbeat is missing for too long."""
        async for late_seconds in self._clock.ticks():
            self._silence.excuse(late_seconds)
            process, seconds = self._process, self._silence.seconds()
            if process is None or not self._is_connected:
                continue
            was_silent, self._is_silent = self._is_silent, seconds > READY_SILENCE_SECONDS
            if self._is_silent and not was_silent:
                self._log.warning("The engine process sends no heartbeat; its requests wait.")
            if seconds > self._hang_seconds:
                self._log.error("The engine process sent no heartbeat for %.0f seconds; killing it.", seconds)
                process.kill()

    def _on_message(self, message: WhileRunning) -> None:
        self._silence.end()
        match message:
            case StepOutput(outputs=outputs):
                self.listener.on_step(message)
                for output in outputs:
                    self._requests.put(output)
                self.adapters.let_go()
                if self._requests.is_holding:
                    self._send_released()
            case BatchBegins(request_ids=request_ids):
                self._requests.begin_batch(request_ids)
            case EngineLog(level=level, text=text):
                self._log.log(level, "%s", text)
            case AdapterChecked():
                self.adapters.on_checked(message)
            case EngineSnapshot():
                self.listener.on_snapshot(message)
            case Heartbeat():
                pass

    def _connect(self) -> None:
        self._silence.end()
        self._is_connected, self._is_given_up = True, False
        if self._snapshot_period_seconds:
            self.subscribe(self._snapshot_period_seconds)
        self.adapters.on_connect()
        self._send_released()

    def _disconnect(self) -> None:
        self._is_connected = False
        self.adapters.on_disconnect()
        self.listener.on_disconnect()
