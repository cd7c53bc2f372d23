"""ReplicaServer: a replica's side of the sockets between API processes and a replica.

A client sends the secret of the replica and the name of its connection, then frames with lists of `ToReplica`. It gets
frames with `ReplicaMessages`. A wrong secret, or none within HELLO_SECONDS, closes the connection.
"""

import asyncio
import contextlib
import hmac
import secrets

import msgspec

from caravan.scheduler.channel import LENGTH, FrameSplitter
from caravan.server.replicas.engine_owner import EngineOwner
from caravan.server.replicas.replica import ReplicaLost

SECRET_BYTES = 32
CONNECTION_BYTES = 16  # of the name of a connection, which is ASCII
HELLO_SECONDS = 10.0
READ_BYTES = 1 << 18


class ReplicaAddress(msgspec.Struct, frozen=True):
    """Where a replica listens, and what a client must know."""

    host: str
    port: int
    secret: bytes


class ReplicaServer:
    """Connects API processes with the owner of an engine."""

    def __init__(self, owner: EngineOwner) -> None:
        self._owner = owner
        self._secret = secrets.token_bytes(SECRET_BYTES)
        self._server: asyncio.Server | None = None

    async def start(self, host: str) -> ReplicaAddress:
        """Listen on a free port of an address of this machine; raises OSError."""
        self._server = await asyncio.start_server(self._serve, host, 0)
        port: int = self._server.sockets[0].getsockname()[1]
        return ReplicaAddress(host, port, self._secret)

    async def stop(self) -> None:
        """Listen no more; connections end with the engine."""
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, TimeoutError):
            async with asyncio.timeout(HELLO_SECONDS):
                hello = await reader.readexactly(SECRET_BYTES + CONNECTION_BYTES)
            if hmac.compare_digest(hello[:SECRET_BYTES], self._secret):
                connection = hello[SECRET_BYTES:].decode("ascii", "replace")
                tasks = [
                    asyncio.create_task(self._send(connection, writer)),
                    asyncio.create_task(self._receive(connection, reader)),
                ]
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
        writer.close()

    async def _send(self, connection: str, writer: asyncio.StreamWriter) -> None:
        """Send all messages until the engine ends. Those of a slow client wait, and are sent together."""
        async with contextlib.aclosing(self._owner.messages(connection)) as bodies:
            async for body in bodies:
                writer.write(LENGTH.pack(len(body)) + body)
                await writer.drain()

    async def _receive(self, connection: str, reader: asyncio.StreamReader) -> None:
        """Pass messages to the engine until the client leaves, or sends what is none."""
        frames = FrameSplitter()
        with contextlib.suppress(ReplicaLost, msgspec.MsgspecError, ValueError):
            while received := await reader.read(READ_BYTES):
                for body in frames.split(received):
                    self._owner.receive(connection, body)
