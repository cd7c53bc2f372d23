"""EngineClient: every request the engine works on, across the lives of the engine process."""

import asyncio
import itertools
import logging
import time
from collections.abc import Callable

import msgspec

from model.sampling_params import Pooling, SamplingParams
from scheduler.config import EngineConfig
from scheduler.messages import Abort, EngineReady, Request, StartEngine, StepOutput, StepStats
from server.asker import Asker
from server.engine_process import ENGINE_PROGRAM, EngineProcess, EngineStartFailed
from server.token_stream import EngineDied, EngineUnavailable, TokenStream

IDLE_SILENCE_SECONDS = 2.0  # an idle engine beats twice a second
BUSY_SILENCE_SECONDS = 60.0  # one step of a large model on a small machine
FIRST_PAUSE_SECONDS = 0.1  # before the engine is started again; doubles with each failure
LONGEST_PAUSE_SECONDS = 30.0

logger = logging.getLogger(__name__)


class EngineClient:
    """Hands requests to the engine process and its outputs to their streams.

    If the process ends, or says nothing for too long, every stream fails with EngineDied and the process is started
    again with the same limits; until it has loaded, requests are refused with EngineUnavailable.
    """

    def __init__(self, start: StartEngine, program: tuple[str, ...] = ENGINE_PROGRAM) -> None:
        """Start the process, which runs `program`; `ready` tells when it has loaded."""
        self.stats = StepStats()
        self.on_step: Callable[[StepOutput], None] = lambda _: None
        self.on_restart: Callable[[], None] = lambda: None
        self.config: EngineConfig  # known once it is ready
        self._start = start
        self._program = program
        self._process = EngineProcess(start, self._deliver, program)
        self._streams: dict[int, TokenStream] = {}
        self._request_ids = itertools.count(1)
        self._is_connected = False
        self._heard_at_seconds = 0.0
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def is_ready(self) -> bool:
        """Whether the engine takes requests and has been heard lately."""
        return self._is_connected and self._silence_seconds() < self._patience_seconds()

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

    def submit(
        self,
        prompt_token_ids: list[int],
        params: SamplingParams,
        asker: Asker = Asker(),
        grammar: str = "",
        pooling: Pooling | None = None,
        group: int = 0,
    ) -> TokenStream:
        """Return the stream of a new request; raises EngineUnavailable."""
        if not self.is_ready:
            raise EngineUnavailable
        stream = TokenStream(next(self._request_ids), self._abort)
        self._streams[stream.request_id] = stream
        self._process.send(
            Request(
                request_id=stream.request_id,
                prompt_token_ids=prompt_token_ids,
                params=params,
                cache_salt=asker.cache_salt,
                key=asker.key_name,
                priority=asker.priority,
                grammar=grammar,
                pooling=pooling,
                group=group,
            )
        )
        return stream

    async def stop(self) -> None:
        """End the process; streams still open fail with EngineDied."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._disconnect()
        await self._process.stop()

    def _abort(self, request_id: int) -> None:
        del self._streams[request_id]
        if self._is_connected:
            self._process.send(Abort(request_id=request_id))

    async def _keep_going(self) -> None:
        """Wait for the process to end, then start another one, for ever."""
        while True:
            await self._process.ended()
            self._disconnect()
            logger.error("The engine process ended (%s); starting it again.", await self._process.stop())
            await self._start_again()
            self._connect()

    async def _start_again(self) -> None:
        pause_seconds = FIRST_PAUSE_SECONDS
        while True:
            self.on_restart()
            await asyncio.sleep(pause_seconds)
            try:
                self._process = EngineProcess(self._start, self._deliver, self._program)
                await self._process.ready()
            except (EngineStartFailed, OSError) as error:
                await self._process.stop()
                pause_seconds = min(2 * pause_seconds, LONGEST_PAUSE_SECONDS)
                logger.error("The engine does not start; next try in %g seconds: %s", pause_seconds, error)
            else:
                return

    async def _watch(self) -> None:
        """Kill a process that is silent for far too long: it hangs."""
        while True:
            await asyncio.sleep(IDLE_SILENCE_SECONDS)
            if self._is_connected and self._silence_seconds() > BUSY_SILENCE_SECONDS:
                logger.error("The engine process has been silent for %.0f seconds; ending it.", self._silence_seconds())
                self._process.kill()

    def _deliver(self, output: StepOutput) -> None:
        self._heard_at_seconds = time.monotonic()
        self.stats = output.stats
        self.on_step(output)
        for sequence in output.outputs:
            stream = self._streams.get(sequence.request_id)
            if stream is None:  # aborted while this step ran
                continue
            if sequence.finish_reason is not None:
                del self._streams[sequence.request_id]
            stream.put(sequence)

    def _connect(self) -> None:
        self._heard_at_seconds = time.monotonic()
        self._is_connected = True

    def _disconnect(self) -> None:
        self._is_connected = False
        self.stats = StepStats()
        streams, self._streams = self._streams, {}
        for stream in streams.values():
            stream.fail(EngineDied())

    def _silence_seconds(self) -> float:
        return time.monotonic() - self._heard_at_seconds

    def _patience_seconds(self) -> float:
        return BUSY_SILENCE_SECONDS if self._streams else IDLE_SILENCE_SECONDS
