"""BodyMemory: limit the memory of all request bodies together."""

import asyncio
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from caravan.server.generation.fair_share import has_room

SCOPE_BODY = "caravan.body"  # ASGI scope: the BodyReservation of the request
DEFAULT_BYTES = 64 * 2**20
SMALL_BYTES = 32 * 1024  # smaller bodies are not counted: the concurrency limit bounds them

Args = ParamSpec("Args")
Result = TypeVar("Result")


class BodyMemory:
    """The bytes of larger bodies, in total and by API key, and the one thread that decodes them.

    A request has a reservation from the arrival of its body until it ends. Python objects can take many times the bytes
    of a body, so the reservation is for the objects once they are created.
    """

    def __init__(self, max_bytes: int = DEFAULT_BYTES) -> None:
        self.max_bytes = max_bytes
        self._bytes_of_key: Counter[str] = Counter()
        # One thread: decoding JSON holds the GIL, and more threads would only block the event loop more.
        self._thread = ThreadPoolExecutor(1, "request-bodies")

    @property
    def num_bytes(self) -> int:
        """Reserved bytes of all keys."""
        return self._bytes_of_key.total()

    def reserve(self, key_name: str) -> "BodyReservation":
        """Return an empty reservation for a new request."""
        return BodyReservation(self, key_name)

    def resize(self, key_name: str, old_bytes: int, new_bytes: int) -> bool:
        """Resize a reservation, and return whether that is within the limit; the only one may exceed it."""
        grown_bytes = new_bytes - old_bytes
        is_alone = self.num_bytes == old_bytes
        if grown_bytes > 0 and not is_alone and not has_room(self._bytes_of_key, key_name, grown_bytes, self.max_bytes):
            return False
        self._bytes_of_key[key_name] += grown_bytes
        if not self._bytes_of_key[key_name]:
            del self._bytes_of_key[key_name]
        return True

    async def run(self, read: Callable[Args, Result], *args: Args.args, **kwargs: Args.kwargs) -> Result:
        """Run `read` in the thread, one call at a time, and return its result."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, lambda: read(*args, **kwargs))


class BodyReservation:
    """The reserved bytes of one request's body."""

    def __init__(self, memory: BodyMemory, key_name: str) -> None:
        self.memory = memory
        self._key_name = key_name
        self._num_bytes = 0
        self.was_rejected = False  # it would have exceeded the limit

    def resize(self, num_bytes: int) -> bool:
        """Reserve exactly `num_bytes`, and return whether that is within the limit."""
        counted = num_bytes if num_bytes > SMALL_BYTES else 0
        has_room = self.memory.resize(self._key_name, self._num_bytes, counted)
        if has_room:
            self._num_bytes = counted
        else:
            self.was_rejected = True
        return has_room

    def grow(self, num_bytes: int) -> bool:
        """Reserve at least `num_bytes`, and return whether that is within the limit."""
        return num_bytes <= self._num_bytes or self.resize(num_bytes)

    def release(self) -> None:
        """Release all bytes."""
        self.resize(0)
