"""Replica: an engine in another process or on another machine, as an API process uses it, and what they exchange."""

from collections.abc import AsyncGenerator
from typing import Protocol

import msgspec

from caravan.scheduler.messages import (
    Abort,
    BatchBegins,
    EngineLog,
    EngineReady,
    EngineSnapshot,
    Heartbeat,
    Request,
    StepOutput,
    Subscribe,
)


class ReplicaLost(Exception):
    """The engine of a replica has ended, or the replica cannot be reached; the text says which, in one line."""


class Draining(msgspec.Struct, frozen=True, tag=True):
    """The replica ends soon: it finishes the requests that it has and must get no others."""


FromReplica = EngineReady | Draining | BatchBegins | StepOutput | Heartbeat | EngineLog | EngineSnapshot
ToReplica = Request | Abort | Subscribe


class ReplicaMessages(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """Messages of a replica, of one step or of several. Its times are those of the replica's clock."""

    sent_at_seconds: float  # time.monotonic() of the replica
    messages: list[FromReplica]


class Replica(Protocol):
    """One replica. A connection is one life of its engine: when the engine ends, all its connections do."""

    name: str  # as metrics and explanations show it

    def messages(self, connection: str) -> AsyncGenerator[bytes, None]:
        """Connect, and yield encoded `ReplicaMessages`, the first with EngineReady once the engine has loaded.

        Ends, or raises ReplicaLost, when the engine ends. `connection` is a name of the caller's choice, never used
        twice.
        """

    async def send(self, connection: str, body: bytes) -> None:
        """Deliver messages for the engine, an encoded list of `ToReplica`; raises ReplicaLost.

        An empty list says that the caller is alive.
        """


def encode_messages(messages: list[ToReplica]) -> bytes:
    """Return messages for a replica as bytes."""
    return msgspec.msgpack.encode(messages)
