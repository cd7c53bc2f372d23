"""Replicas without Ray: an engine process of this process, and one that a test plays itself."""

import asyncio
from collections.abc import AsyncGenerator

import msgspec

from caravan.scheduler.messages import Abort, EngineReady, FinishReason, Request, SequenceOutput, StepOutput, StepStats
from caravan.server.replicas.engine_owner import EngineOwner
from caravan.server.replicas.replica import FromReplica, ReplicaLost, ReplicaMessages, ToReplica
from caravan.server.replicas.replica_set import ReplicaSet
from tests.support.engine_reports import READY


class LocalReplica:
    """A replica whose engine is a child of this process; its messages are encoded as they are between machines."""

    def __init__(self, name: str, owner: EngineOwner) -> None:
        self.name = name
        self.owner = owner
        self._task = asyncio.create_task(owner.run())

    async def messages(self, connection: str) -> AsyncGenerator[bytes, None]:
        async for body in self.owner.messages(connection):
            yield body

    async def send(self, connection: str, body: bytes) -> None:
        await asyncio.sleep(0)
        self.owner.receive(connection, body)

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


class FakeReplica:
    """A replica that a test plays: what it was sent, and what it says."""

    def __init__(self, name: str, report: EngineReady = READY) -> None:
        self.name = name
        self.report = report
        self.is_failing = False  # its calls fail
        self.requests: dict[int, Request] = {}  # that it was sent and were not aborted, in order
        self.sent: list[ToReplica] = []
        self.num_connections = 0
        self._said: asyncio.Queue[FromReplica | None] = asyncio.Queue()

    async def messages(self, connection: str) -> AsyncGenerator[bytes, None]:
        self.num_connections += 1
        self._said = asyncio.Queue()
        message: FromReplica | None = self.report
        while message is not None:
            yield msgspec.msgpack.encode(ReplicaMessages(sent_at_seconds=0.0, messages=[message]))
            message = await self._said.get()

    async def send(self, connection: str, body: bytes) -> None:
        if self.is_failing:
            raise ReplicaLost("it does not listen")
        for message in msgspec.msgpack.decode(body, type=list[ToReplica]):
            self.sent.append(message)
            if isinstance(message, Request):
                self.requests[message.request_id] = message
            elif isinstance(message, Abort):
                self.requests.pop(message.request_id)

    def say(self, message: FromReplica) -> None:
        self._said.put_nowait(message)

    def give(self, request_id: int, *token_ids: int, ends: bool = False) -> None:
        """Say that a step gave a request these tokens, which are its last ones if it ends."""
        reason: FinishReason | None = "length" if ends else None
        output = SequenceOutput(request_id=request_id, token_ids=[*token_ids], finish_reason=reason)
        if ends:
            self.requests.pop(request_id)
        self.say(StepOutput(outputs=[output], stats=StepStats(num_blocks=64, num_running=len(self.requests))))

    def die(self) -> None:
        """End the engine."""
        self.requests.clear()
        self._said.put_nowait(None)


class LocalSource:
    """A source of replicas that are children of this process, all there from the start."""

    def __init__(self, *owners: EngineOwner) -> None:
        self._owners = owners
        self.replicas: list[LocalReplica] = []

    async def start(self, replicas: ReplicaSet) -> None:
        self.replicas = [LocalReplica(f"r{number}", owner) for number, owner in enumerate(self._owners)]
        for replica in self.replicas:
            replicas.add(replica)

    async def stop(self) -> None:
        for replica in self.replicas:
            await replica.stop()
