"""Standby: a process with the model loaded, which takes over when the engine fails."""

import asyncio
import logging
import time
from collections.abc import Callable

from caravan.scheduler.messages import EngineLog, WhileRunning
from caravan.server.engine.process import EngineProcess, EngineStartFailed

FIRST_PAUSE_SECONDS = 1.0  # before a standby that has ended is replaced; doubles with each end
MAX_PAUSE_SECONDS = 300.0

logger = logging.getLogger(__name__)


class Standby:
    """Keeps one standby process: starts it, and starts another one if it ends.

    It is no engine: it gets no requests, and the requests of the engine do not depend on it.
    """

    def __init__(self, make_process: Callable[[Callable[[WhileRunning], None]], EngineProcess], name: str = "") -> None:
        """`make_process` starts a standby process, whose messages go to its argument; `start` makes the first one.

        Log lines carry the `name` of the model.
        """
        self._log = logging.LoggerAdapter(logger, {"model": name} if name else {})
        self._make_process = make_process
        self._process: EngineProcess | None = None
        self._has_loaded = False
        self._task: asyncio.Task[None] | None = None
        self._ending: set[asyncio.Task[str]] = set()  # processes that have failed, until they are gone

    @property
    def is_ready(self) -> bool:
        """Whether a standby has loaded the model and waits."""
        return self._has_loaded

    def start(self, delay_seconds: float = 0.0) -> None:
        """Start a standby after the delay, and keep one from then on."""
        self._task = asyncio.create_task(self._keep(delay_seconds))

    async def take(self) -> EngineProcess | None:
        """Return the standby process, which may still be loading, and keep none until the next `start`."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        process, self._process, self._has_loaded = self._process, None, False
        return process

    async def stop(self) -> None:
        """End the standby process, and wait for those that were ending."""
        process = await self.take()
        if process is not None:
            await process.stop()
        await asyncio.gather(*self._ending)

    async def _keep(self, delay_seconds: float) -> None:
        await asyncio.sleep(delay_seconds)
        pause_seconds = FIRST_PAUSE_SECONDS
        while True:
            began_seconds = time.monotonic()
            try:
                self._process = process = self._make_process(self._log_message)
                await process.loaded()
                self._has_loaded = True
                self._log.info("The standby is ready.")
                await process.ended()
                reason = "The process ended."
            except (EngineStartFailed, OSError) as error:
                reason = str(error)
            self._has_loaded = False
            if time.monotonic() - began_seconds > MAX_PAUSE_SECONDS:
                pause_seconds = FIRST_PAUSE_SECONDS
            self._log.error("The standby failed; starting another one in %g seconds: %s", pause_seconds, reason)
            ended, self._process = self._process, None
            if ended is not None:
                await self._end(ended)
            await asyncio.sleep(pause_seconds)
            pause_seconds = min(2 * pause_seconds, MAX_PAUSE_SECONDS)

    async def _end(self, process: EngineProcess) -> None:
        """Wait until a process is gone. It is waited for, and killed if it does not end, also if this is cancelled."""
        ending = asyncio.create_task(process.stop())
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)
        await asyncio.shield(ending)

    def _log_message(self, message: WhileRunning) -> None:
        """Log a log record of a standby, which sends nothing else."""
        if isinstance(message, EngineLog):
            self._log.log(message.level, "Standby: %s", message.text)
