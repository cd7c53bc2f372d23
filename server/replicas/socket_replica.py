"""SocketReplica: a replica that is reached through a socket."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable

from caravan.scheduler.channel import LENGTH, FrameSplitter
from caravan.server.replicas.replica import ReplicaLost
from caravan.server.replicas.replica_server import READ_BYTES, ReplicaAddress


class SocketReplica:
    """A replica whose `ReplicaServer` listens somewhere; each connection asks anew where."""

    def __init__(self, name: str, locate: Callable[[], Awaitable[ReplicaAddress]]) -> None:
        """`locate` returns the address; raises ReplicaLost."""
        self.name = name
        self._locate = locate
        self._writers: dict[str, asyncio.StreamWriter] = {}  # by connection

    async def messages(self, connection: str) -> AsyncGenerator[bytes, None]:
        """Yield the bodies that the replica sends."""
        address = await self._locate()
        try:
            reader, writer = await asyncio.open_connection(address.host, address.port)
        except OSError as error:
            raise ReplicaLost(f"cannot connect: {error.strerror}") from None
        self._writers[connection] = writer
        frames = FrameSplitter()
        try:
            writer.write(address.secret + connection.encode("ascii"))
            while received := await reader.read(READ_BYTES):
                for body in frames.split(received):
                    yield body
        except (OSError, ValueError) as error:
            raise ReplicaLost(f"the connection ended: {type(error).__name__}") from None
        finally:
            del self._writers[connection]
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def send(self, connection: str, body: bytes) -> None:
        """Send messages; that they arrived is known by what comes back."""
        writer = self._writers.get(connection)
        if writer is None:
            raise ReplicaLost("the connection has ended")
        try:
            writer.write(LENGTH.pack(len(body)) + body)
            await writer.drain()
        except OSError as error:
            raise ReplicaLost(f"the connection ended: {type(error).__name__}") from None
