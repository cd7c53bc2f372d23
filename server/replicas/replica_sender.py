"""ReplicaSender: the messages to one replica, in order, with one call for all that came together."""

import asyncio
from collections.abc import Callable

from caravan.server.replicas.replica import Replica, ToReplica, encode_messages

ALIVE_SECONDS = 2.0  # without a message, after which an empty one says that this process is alive


class ReplicaSender:
    """Sends messages to a replica. A call that fails loses the connection: whether it was received is unknown."""

    def __init__(self, replica: Replica, connection: str, on_loss: Callable[[str], None]) -> None:
        """`on_loss` is called once, with the reason, when a call fails."""
        self._replica = replica
        self._connection = connection
        self._on_loss = on_loss
        self._messages: list[ToReplica] = []
        self._has_messages = asyncio.Event()
        self._task = asyncio.create_task(self._send_all())

    def put(self, message: ToReplica) -> None:
        """Send a message soon."""
        self._messages.append(message)
        self._has_messages.set()

    def close(self) -> None:
        """Send no more."""
        self._task.cancel()

    async def _send_all(self) -> None:
        while True:
            try:
                async with asyncio.timeout(ALIVE_SECONDS):
                    await self._has_messages.wait()
            except TimeoutError:
                pass
            self._has_messages.clear()
            messages, self._messages = self._messages, []
            try:
                await self._replica.send(self._connection, encode_messages(messages))
            except Exception as error:  # of Ray, which has many
                self._on_loss(f"a call failed: {type(error).__name__}")
                return
