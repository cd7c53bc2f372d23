"""SendTimeout: a client that reads is left alone, one that does not is disconnected."""

import asyncio
from typing import cast

from caravan.server.http.send_timeout import SendTimeout


class Transport:
    """A transport with a number of unsent bytes."""

    def __init__(self) -> None:
        self.num_unsent = 100
        self.is_aborted = False

    def get_write_buffer_size(self) -> int:
        return self.num_unsent

    def abort(self) -> None:
        self.is_aborted = True


async def test_a_connection_is_aborted_after_the_time_without_progress() -> None:
    transport = Transport()
    timeout = SendTimeout(cast(asyncio.Transport, transport))
    timeout.start(0.02)
    for _ in range(4):
        await asyncio.sleep(0.015)
        transport.num_unsent -= 10
    assert not transport.is_aborted
    await asyncio.sleep(0.06)
    assert transport.is_aborted


async def test_a_stopped_timeout_aborts_nothing() -> None:
    transport = Transport()
    timeout = SendTimeout(cast(asyncio.Transport, transport))
    timeout.start(0.01)
    timeout.stop()
    timeout.stop()
    await asyncio.sleep(0.03)
    assert not transport.is_aborted
