"""BodyMemory: how many bytes the bodies of all requests in the server take together."""

import asyncio
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from caravan.server.generation.fair_share import has_room

SCOPE_BODY = "caravan.body"  # where the share of a request's body is
DEFAULT_BYTES = 64 * 2**20
SMALL_BYTES = 32 * 1024  # a body up to here is not counted: the number of requests bounds them

Args = ParamSpec("Args")
Result = TypeVar("Result")


class BodyMemory:
    """The bytes taken by larger bodies, in sum and by API key, and the one thread that reads them.

    A request has its share from the arrival of its body until it ends. What Python makes of a body can take many times
    its bytes, so the share is that of the objects once they are made.
    """

    def __init__(self, max_bytes: int = DEFAULT_BYTES) -> None:
        self.max_bytes = max_bytes
        self._bytes_of_key: Counter[str] = Counter()
        # One thread: JSON is decoded under Python's lock, and several threads would only take it from the event loop.
        self._thread = ThreadPoolExecutor(1, "request-bodies")

    @property
    def num_bytes(self) -> int:
        """Bytes of all keys."""
        return self._bytes_of_key.total()

    def enter(self, key_name: str) -> "BodyShare":
        """Return the share of a new request, still empty."""
        return BodyShare(self, key_name)

    def resize(self, key_name: str, old_bytes: int, new_bytes: int) -> bool:
        """Change a share, and return whether there was room for it; one that is alone always finds room."""
        grown_bytes = new_bytes - old_bytes
        is_alone = self.num_bytes == old_bytes
        if grown_bytes > 0 and not is_alone and not has_room(self._bytes_of_key, key_name, grown_bytes, self.max_bytes):
            return False
        self._bytes_of_key[key_name] += grown_bytes
        if not self._bytes_of_key[key_name]:
            del self._bytes_of_key[key_name]
        return True

    async def run(self, read: Callable[Args, Result], *args: Args.args, **kwargs: Args.kwargs) -> Result:
        """Return what `read` returns, computed in the thread; one call at a time."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, lambda: read(*args, **kwargs))


class BodyShare:
    """The bytes that one request's body takes."""

    def __init__(self, memory: BodyMemory, key_name: str) -> None:
        self.memory = memory
        self._key_name = key_name
        self._num_bytes = 0
        self.was_refused = False  # there was no room for it

    def resize(self, num_bytes: int) -> bool:
        """Take as much as a body of this size needs, and return whether there was room for it."""
        counted = num_bytes if num_bytes > SMALL_BYTES else 0
        has_room = self.memory.resize(self._key_name, self._num_bytes, counted)
        if has_room:
            self._num_bytes = counted
        else:
            self.was_refused = True
        return has_room

    def grow(self, num_bytes: int) -> bool:
        """Take at least as much as a body of this size needs, and return whether there was room for it."""
        return num_bytes <= self._num_bytes or self.resize(num_bytes)

    def release(self) -> None:
        """Give all of it back."""
        self.resize(0)
