"""SendTimeout: a client that reads is left alone, one that does not is disconnected."""

import asyncio
from typing import cast

from caravan.server.http.send_timeout import SendTimeout


class Transport:
    """A transport with a number of unsent bytes."""

    def __init__(self) -> None:
        self.num_unsent = 100
        self.num_aborts = 0

    def get_write_buffer_size(self) -> int:
        return self.num_unsent

    def abort(self) -> None:
        self.num_aborts += 1


async def test_a_connection_is_aborted_after_the_time_without_progress() -> None:
    transport = Transport()
    timeout = SendTimeout(cast(asyncio.Transport, transport))
    timeout.start(60)
    transport.num_unsent = 90
    timeout._check(100, 60)  # it has sent ten bytes since
    assert transport.num_aborts == 0
    timeout._check(90, 60)
    assert transport.num_aborts == 1
    timeout.stop()


async def test_the_time_passes_by_itself() -> None:
    transport = Transport()
    SendTimeout(cast(asyncio.Transport, transport)).start(0.01)
    async with asyncio.timeout(60):
        while not transport.num_aborts:
            await asyncio.sleep(0.005)


async def test_a_stopped_timeout_aborts_nothing() -> None:
    transport = Transport()
    timeout = SendTimeout(cast(asyncio.Transport, transport))
    timeout.start(0.01)
    timeout.stop()
    timeout.stop()
    await asyncio.sleep(0.03)
    assert transport.num_aborts == 0
