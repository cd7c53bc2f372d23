"""LineRuns: the lines of a batch, run until each has a response in the journal."""

import asyncio
import logging
import sqlite3
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

from caravan.server.batches.answer import LineAnswer
from caravan.server.batches.batch_store import BatchStore
from caravan.server.batches.file_store import FileStore
from caravan.server.batches.input_lines import InputLine, read_line
from caravan.server.batches.slots import Slots

MAX_UNAVAILABLE = 3  # responses 503 to a line while the engine is ready, of which the last one counts
READY_SECONDS = 0.1  # between two looks at an engine that is not ready

Answer = Callable[[str, str, bytes], Awaitable[LineAnswer]]  # of a key name, a path and a body

logger = logging.getLogger(__name__)


class LineRuns:
    """Runs lines, as many at a time as there are slots.

    A response is in the journal before it counts. A line without one, for whatever reason, runs again the next time.
    """

    def __init__(
        self,
        store: BatchStore,
        files: FileStore,
        slots: Slots,
        answer: Answer,
        is_ready: Callable[[], bool],
        retry_seconds: float,
    ) -> None:
        """`retry_seconds` pass after a response 429 or 503, and after the journal could not be written."""
        self._store = store
        self._files = files
        self._slots = slots
        self._answer = answer
        self._is_ready = is_ready
        self._retry_seconds = retry_seconds

    async def run(
        self, batch_id: str, key_name: str, input_path: Path, lines: list[InputLine], on_end: Callable[[int], None]
    ) -> None:
        """Run lines to their ends; `on_end` is called with the status of each. Raises OSError (the input file)."""
        try:
            async with asyncio.TaskGroup() as group:
                for line in lines:
                    await self._slots.take(key_name)
                    task = group.create_task(self._run(batch_id, key_name, input_path, line, on_end))
                    task.add_done_callback(lambda _: self._slots.release(key_name))
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None

    async def _run(
        self, batch_id: str, key_name: str, path: Path, line: InputLine, on_end: Callable[[int], None]
    ) -> None:
        line_request = await self._files.run(read_line, path, line.start, line.num_bytes)
        num_unavailable = 0
        while True:
            while not self._is_ready():  # noqa: ASYNC110  # it is a function of several parts
                await asyncio.sleep(READY_SECONDS)
            answer = await self._answer(key_name, line_request.url, bytes(line_request.body))
            # A limit of the server or a new engine is no fault of the line; a line that ends every engine is.
            num_unavailable += answer.status_code == 503
            if answer.status_code != 429 and (answer.status_code != 503 or num_unavailable == MAX_UNAVAILABLE):
                break
            await asyncio.sleep(self._retry_seconds)
        await self._keep_trying(partial(self._store.answer, batch_id, line.number, answer))
        on_end(answer.status_code)

    async def _keep_trying(self, store: Callable[[], Awaitable[None]]) -> None:
        """Store an answer, also if the disk is full for a while: it was expensive."""
        num_failures = 0
        while True:
            try:
                await store()
                break
            except sqlite3.Error as error:
                num_failures += 1
                if num_failures == 1:
                    logger.error("The batch journal cannot be written: %s. Trying again.", error)
                await asyncio.sleep(self._retry_seconds)
