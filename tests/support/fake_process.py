"""FakeProcess: a process of an engine that a test controls."""

import asyncio
from collections.abc import Callable
from types import ModuleType

import msgspec
import pytest

from caravan.scheduler.messages import EngineReady, StartEngine, WhileRunning
from caravan.server.engine import loop_clock
from caravan.server.engine.process import EngineStartFailed
from tests.support.engine_reports import READY


class FakeProcess:
    """In the place of EngineProcess: what it was sent, and when it ends."""

    made: "list[FakeProcess]"
    fails_to_start = False

    def __init__(self, start: StartEngine, on_message: Callable[[WhileRunning], None], program: object) -> None:
        self.start = start
        self.program = program
        self.sent: list[msgspec.Struct] = []
        self.is_killed = False
        self.num_stops = 0
        self.on_message = on_message
        self.has_loaded = asyncio.Event()  # set by the test
        self.is_taking_over = False
        self._has_ended = asyncio.Event()
        self.pid = len(self.made) + 1
        self.made.append(self)

    @classmethod
    def used_by(cls, client: ModuleType, monkeypatch: pytest.MonkeyPatch) -> "list[FakeProcess]":
        """Let the module of EngineClient make processes of this class; return those that it makes."""
        cls.made = []
        monkeypatch.setattr(cls, "fails_to_start", False)
        monkeypatch.setattr(client, "EngineProcess", cls)
        monkeypatch.setattr(loop_clock, "CHECK_PERIOD_SECONDS", 0.01)
        monkeypatch.setattr(client, "READY_SILENCE_SECONDS", 60.0, raising=False)  # it sends no heartbeats
        return cls.made

    async def ready(self) -> EngineReady:
        if self.fails_to_start:
            raise EngineStartFailed("no memory")
        return READY

    async def loaded(self) -> None:
        if self.fails_to_start:
            raise EngineStartFailed("no memory")
        await self.has_loaded.wait()

    async def take_over(self, timeout_seconds: float) -> EngineReady:
        self.is_taking_over = True
        await self.loaded()
        async with asyncio.timeout(timeout_seconds):
            return await self.ready()

    def say(self, message: WhileRunning) -> None:
        self.on_message(message)

    async def ended(self) -> None:
        await self._has_ended.wait()

    def send(self, message: msgspec.Struct) -> None:
        self.sent.append(message)

    def kill(self) -> None:
        self.is_killed = True
        self._has_ended.set()

    async def stop(self) -> str:
        self.num_stops += 1
        return "signal 9"
