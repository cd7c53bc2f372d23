"""Slots: how many lines run at the same time, shared between API keys."""

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Slots:
    """A number of slots; a free one goes to the key that has the fewest, and within a key to who waits longest."""

    def __init__(self, num_slots: int) -> None:
        self.num_slots = num_slots
        self._num_free = num_slots
        self._num_taken: Counter[str] = Counter()  # by key
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}  # by key, none is empty

    @property
    def num_taken(self) -> int:
        """The number of taken slots."""
        return self._num_taken.total()

    async def take(self, key_name: str) -> None:
        """Wait for a slot of a key and take it."""
        granted = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(key_name, deque()).append(granted)
        self._grant()
        try:
            await granted
        except asyncio.CancelledError:
            if granted.done() and not granted.cancelled():
                self.release(key_name)
            else:
                self._forget(key_name, granted)
            raise

    @asynccontextmanager
    async def one_for(self, key_name: str) -> AsyncIterator[None]:
        """Wait for a slot of a key, and have it within the block."""
        await self.take(key_name)
        try:
            yield
        finally:
            self.release(key_name)

    def release(self, key_name: str) -> None:
        """Give a slot back."""
        self._num_taken[key_name] -= 1
        self._num_free += 1
        self._grant()

    def _grant(self) -> None:
        while self._num_free and self._waiting:
            key_name = min(self._waiting, key=lambda name: self._num_taken[name])
            granted = self._waiting[key_name][0]
            self._forget(key_name, granted)
            if not granted.done():
                self._num_free -= 1
                self._num_taken[key_name] += 1
                granted.set_result(None)

    def _forget(self, key_name: str, granted: "asyncio.Future[None]") -> None:
        queue = self._waiting.get(key_name)
        if queue is not None and granted in queue:
            queue.remove(granted)
            if not queue:
                del self._waiting[key_name]
