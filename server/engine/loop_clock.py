"""LoopClock: tell an engine that is silent from an event loop that was blocked."""

import asyncio
import time
from collections.abc import AsyncGenerator

CHECK_PERIOD_SECONDS = 0.25  # between two ticks
LATE_SECONDS = 0.25  # a tick that is later than this means that the event loop was blocked


class LoopClock:
    """Ticks four times a second, and knows for how long the event loop was blocked.

    Messages of that time are still unread, so it does not count as silence of their sender.
    """

    def __init__(self) -> None:
        self._ticked_at_seconds = time.monotonic()

    def late_seconds(self) -> float:
        """Return for how long the event loop has been blocked since the last tick."""
        late_seconds = time.monotonic() - self._ticked_at_seconds - CHECK_PERIOD_SECONDS
        return late_seconds if late_seconds > LATE_SECONDS else 0.0

    async def ticks(self) -> AsyncGenerator[float, None]:
        """Yield at each tick the seconds for which the event loop was blocked before it."""
        self._ticked_at_seconds = time.monotonic()
        while True:
            await asyncio.sleep(CHECK_PERIOD_SECONDS)
            late_seconds = self.late_seconds()
            self._ticked_at_seconds = time.monotonic()
            yield late_seconds


class Silence:
    """The time since the last message of one engine."""

    def __init__(self, clock: LoopClock) -> None:
        self._clock = clock
        self._heard_at_seconds = time.monotonic()

    def end(self) -> None:
        """Record a message."""
        self._heard_at_seconds = time.monotonic()

    def excuse(self, late_seconds: float) -> None:
        """Leave out a time in which the event loop was blocked."""
        self._heard_at_seconds = min(self._heard_at_seconds + late_seconds, time.monotonic())

    def seconds(self) -> float:
        """Return the seconds since the last message, without those in which the event loop was blocked."""
        return time.monotonic() - self._heard_at_seconds - self._clock.late_seconds()
