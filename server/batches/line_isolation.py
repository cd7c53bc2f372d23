"""LineIsolation: whether lines run together, or one of them alone."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class LineIsolation:
    """Any number of lines that run together, or one that runs alone. The one that has waited longest is next."""

    def __init__(self) -> None:
        self._may_begin = asyncio.Lock()  # a line that runs alone has it until its end
        self._num_together = 0
        self._none_runs = asyncio.Event()
        self._none_runs.set()

    @asynccontextmanager
    async def together(self) -> AsyncIterator[None]:
        """Run a line beside others."""
        async with self._may_begin:
            self._num_together += 1
            self._none_runs.clear()
        try:
            yield
        finally:
            self._num_together -= 1
            if not self._num_together:
                self._none_runs.set()

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """Run a line while no other one runs."""
        async with self._may_begin:
            await self._none_runs.wait()
            yield
