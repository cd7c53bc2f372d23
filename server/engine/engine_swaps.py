"""EngineSwaps: which engines have memory, and which sleep."""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Coroutine, Sequence
from functools import partial

from caravan.scheduler.messages import Request
from caravan.server.engine.process import EngineEndedEarly, EngineStartFailed
from caravan.server.engine.swapped_engine import SwappedEngine

WAITING_PERIOD_SECONDS = 0.05  # between two checks while requests wait for an engine
IDLE_PERIOD_SECONDS = 0.5  # between two checks otherwise
MIN_TIMEOUT_SECONDS = 600.0  # after which a load counts as failed, or after many times the expected time
TIMEOUT_FACTOR = 20
MAX_LOADS = 3  # in a row whose process was killed, after which the requests of the model fail

logger = logging.getLogger(__name__)


class EngineSwaps:
    """Loads an engine when it gets a request, and puts engines to sleep that are idle or whose memory others need.

    Engines that wait for memory are served in order of their oldest request. For the first of them the least recently
    used idle engines are put to sleep. An engine with running requests never is. If the idle ones are not enough, and
    both the first one has waited and a busy one has been loaded for a turn (SwappedEngine.turn_seconds), new requests
    of the busy one wait until after the swap: its running requests end, then it sleeps.

    Engines whose requests are all lines of batches are served after the others, only take the memory of engines without
    clients, and that of an idle one after a turn. They make room for a client without a turn.
    """

    def __init__(self, engines: Sequence[SwappedEngine], budget_bytes: int | None = None) -> None:
        """The needs of engines with memory are at most `budget_bytes` together; None: there is no limit."""
        self.engines = tuple(engines)
        self.budget_bytes = math.inf if budget_bytes is None else budget_bytes
        self._leaving: tuple[SwappedEngine, ...] = ()  # they sleep when their running requests have ended
        self._changed = asyncio.Event()
        self._changes: dict[asyncio.Task[None], SwappedEngine] = {}  # that load an engine or put it to sleep
        self._task: asyncio.Task[None] | None = None

    @property
    def used_bytes(self) -> int:
        """The needs of all engines that have memory."""
        return sum(engine.need_bytes for engine in self.engines if engine.is_resident)

    def start(self) -> None:
        """Begin to load engines for requests, and to put idle ones to sleep."""
        for engine in self.engines:
            engine.client.on_demand = partial(self._on_demand, engine)
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """End all engines; open output queues fail with EngineDied."""
        if self._task is not None:
            self._task.cancel()
        for task, engine in self._changes.items():
            if engine.began_loading_seconds is not None:
                task.cancel()
        await asyncio.gather(*[*self._changes], return_exceptions=True)
        await asyncio.gather(*[engine.client.stop() for engine in self.engines])

    def forecast_seconds(self, engine: SwappedEngine) -> float:
        """Return the expected time until an engine gets a request that arrives now."""
        now = time.monotonic()
        if engine.began_loading_seconds is not None:
            return max(engine.load_seconds - (now - engine.began_loading_seconds), 0.0)
        if engine.is_resident and not engine.is_changing and not engine.client.is_postponing:
            return engine.client.start_seconds()
        before = [other for other in self._waiting() if other is not engine and _since(other) <= _since(engine)]
        before = [other for other in before if other.has_clients]
        busy = [other for other in self.engines if other.is_resident and not other.is_idle and other is not engine]
        seconds = engine.load_seconds + sum(other.load_seconds for other in before)
        if sum(other.need_bytes for other in (*before, *busy, engine)) > self.budget_bytes:
            seconds += min((other.drain_seconds() for other in busy if not other.is_changing), default=0.0)
        if engine.client.is_postponing:
            seconds += engine.drain_seconds()
        return seconds

    def _on_demand(self, engine: SwappedEngine, request: Request) -> None:
        """Handle a new request, which is in the client's queue when the next check runs; raises ModelLoadFailed."""
        engine.check_load()
        if engine.client.state in ("asleep", "loading") or engine.client.is_postponing:
            is_first_client = request.urgency <= 0 and not engine.has_clients  # what lines have waited is not its time
            if engine.waits_since_seconds is None or is_first_client:
                engine.waits_since_seconds = time.monotonic()
            self._changed.set()

    async def _run(self) -> None:
        while True:
            self._check()
            is_busy = self._changes or any(engine.waits_since_seconds is not None for engine in self.engines)
            try:
                async with asyncio.timeout(WAITING_PERIOD_SECONDS if is_busy else IDLE_PERIOD_SECONDS):
                    await self._changed.wait()
            except TimeoutError:
                continue
            self._changed.clear()

    def _check(self) -> None:
        """Start all changes that are due."""
        now = time.monotonic()
        for engine in self.engines:
            after_seconds = engine.sleep_after_seconds
            if after_seconds is not None and engine.is_idle and now - engine.idle_since_seconds >= after_seconds:
                logger.info("The model %s has had no requests for %g s; its engine ends.", engine.name, after_seconds)
                self._put_to_sleep(engine)
            if not len(engine.client.requests):
                engine.waits_since_seconds = None  # their clients have left
        waiting = self._waiting()
        is_for_client = any(engine.has_clients for engine in waiting)
        if not waiting or (not is_for_client and any(engine.has_clients for engine in self._leaving)):
            self._release()
        for engine in waiting:
            if not self._has_room(engine, now):
                return  # those after it wait, too: they could take its memory again and again
            self._release()
            engine.began_loading_seconds = now
            self._change(engine, self._load)

    def _waiting(self) -> list[SwappedEngine]:
        """Return the engines that have requests and no process: first those with clients, by their oldest request."""
        waiting = (engine for engine in self.engines if engine.is_waiting)
        return sorted(waiting, key=lambda engine: (not engine.has_clients, _since(engine)))

    def _has_room(self, engine: SwappedEngine, now: float) -> bool:
        """Return whether the memory for an engine is free; if it is not, free it as far as that is possible now."""
        missing_bytes = engine.need_bytes - (self.budget_bytes - self.used_bytes)
        if missing_bytes <= 0:
            return True
        if any(other.is_changing and other.began_loading_seconds is None for other in self.engines):
            return False  # memory is being freed
        if self._leaving and all(other.is_idle for other in self._leaving):
            leaving, self._leaving = [*self._leaving], ()
        else:
            idle = [other for other in self.engines if other.is_idle and _may_take_idle(engine, other, now)]
            leaving = _enough(sorted(idle, key=lambda other: other.idle_since_seconds), missing_bytes)
            if not leaving:
                self._ask_to_leave(engine, missing_bytes, now)
                return False
        for other in leaving:
            logger.info("The engine of %s ends, to free memory for %s.", other.name, engine.name)
            self._put_to_sleep(other)
        return False

    def _ask_to_leave(self, engine: SwappedEngine, missing_bytes: float, now: float) -> None:
        """Postpone new requests of busy engines that have to go: those with only lines, and others after a turn."""
        if self._leaving:
            return
        able = [other for other in self.engines if other.is_resident and not other.is_changing]
        able = [other for other in able if _has_to_go(engine, other, now)]
        # Idle ones first, then those with only lines, and those that have been loaded for the longest time.
        able.sort(key=lambda other: (not other.is_idle, other.has_clients, other.loaded_at_seconds))
        self._leaving = tuple(_enough(able, missing_bytes))
        for other in self._leaving:
            logger.info("New requests of %s wait until %s has been loaded.", other.name, engine.name)
            other.client.postpone(is_on=True)

    def _release(self) -> None:
        """Let engines that should have left go on."""
        leaving, self._leaving = self._leaving, ()
        for engine in leaving:
            if engine.client.is_postponing:
                engine.client.postpone(is_on=False)
                engine.waits_since_seconds = None

    def _put_to_sleep(self, engine: SwappedEngine) -> None:
        engine.client.postpone(is_on=True)  # requests that come before its process has ended are for the next one
        self._change(engine, self._sleep)

    def _change(self, engine: SwappedEngine, change: Callable[[SwappedEngine], Coroutine[None, None, None]]) -> None:
        """Run a change of an engine in the background."""
        engine.is_changing = True

        async def run() -> None:
            try:
                await change(engine)
            finally:
                engine.is_changing = False
                self._changed.set()

        task = asyncio.create_task(run())
        self._changes[task] = engine
        task.add_done_callback(lambda _: self._changes.pop(task))

    async def _sleep(self, engine: SwappedEngine) -> None:
        await engine.client.sleep()
        engine.client.listener.on_sleep()

    async def _load(self, engine: SwappedEngine) -> None:
        """Load an engine; if that is impossible, its requests fail."""
        began_seconds = time.monotonic()
        limit_seconds = max(MIN_TIMEOUT_SECONDS, TIMEOUT_FACTOR * engine.load_seconds)
        try:
            async with asyncio.timeout(limit_seconds):
                await self._wake(engine)
        except (EngineStartFailed, OSError) as error:  # a TimeoutError is an OSError
            reason = str(error) or f"It has not been loaded within {limit_seconds:g} s."
            logger.error("The model %s cannot be loaded: %s", engine.name, reason)
            await engine.client.sleep()  # ends a process that hangs
            engine.failed_at_seconds = time.monotonic()
            engine.is_broken = isinstance(error, EngineStartFailed) and error.is_permanent
            engine.client.requests.fail(engine.load_failed())
        else:
            engine.loaded_at_seconds = time.monotonic()
            engine.load_seconds = engine.loaded_at_seconds - began_seconds
            engine.client.listener.on_wake(engine.load_seconds)
            logger.info("The model %s was loaded in %.1f s.", engine.name, engine.load_seconds)
        finally:
            engine.began_loading_seconds = engine.waits_since_seconds = None

    async def _wake(self, engine: SwappedEngine) -> None:
        """Start the process of an engine, again if it is killed while it loads."""
        for _ in range(MAX_LOADS - 1):
            try:
                await engine.client.wake()
            except EngineEndedEarly as error:
                logger.warning("%s Starting another one for the model %s.", error, engine.name)
            else:
                return
        await engine.client.wake()


def _since(engine: SwappedEngine) -> float:
    """Return since when an engine waits; one that does not is after all others."""
    return math.inf if engine.waits_since_seconds is None else engine.waits_since_seconds


def _may_take_idle(engine: SwappedEngine, idle: SwappedEngine, now: float) -> bool:
    """Return whether an engine may have the memory of an idle one: lines wait for a turn, in which clients may come."""
    return engine.has_clients or now - idle.idle_since_seconds >= idle.turn_seconds


def _has_to_go(engine: SwappedEngine, other: SwappedEngine, now: float) -> bool:
    """Return whether an engine has to make room for one that waits."""
    if other.is_idle:
        return _may_take_idle(engine, other, now)
    if engine.has_clients != other.has_clients:
        return engine.has_clients
    return min(now - _since(engine) - engine.turn_seconds, now - other.loaded_at_seconds - other.turn_seconds) >= 0


def _enough(engines: Sequence[SwappedEngine], missing_bytes: float) -> list[SwappedEngine]:
    """Return the first of the engines that free `missing_bytes` together, none if all do not."""
    freed_bytes = 0
    for number, engine in enumerate(engines, start=1):
        freed_bytes += engine.need_bytes
        if freed_bytes >= missing_bytes:
            return [*engines[:number]]
    return []
