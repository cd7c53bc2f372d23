"""Waiting for what another thread, process or task does: a minute, since other tests run beside."""

import asyncio
import time
from collections.abc import Callable


def eventually(holds: Callable[[], object], *, within_seconds: float = 60.0) -> None:
    """Wait until `holds` does; fail if that takes too long."""
    deadline = time.monotonic() + within_seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not come to hold"
        time.sleep(0.01)


async def until(holds: Callable[..., object], *, within_seconds: float = 60.0) -> None:
    """Let the event loop run until `holds` does; raises TimeoutError."""
    async with asyncio.timeout(within_seconds):
        while not holds():
            await asyncio.sleep(0.001)
