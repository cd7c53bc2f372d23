"""LineRuns: the lines of a batch, run until each has a response in the journal."""

import asyncio
import logging
import sqlite3
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

from caravan.server.batches.answer import LineAnswer, LineError
from caravan.server.batches.batch_store import BatchStore
from caravan.server.batches.file_store import FileStore
from caravan.server.batches.input_lines import InputLine, read_line
from caravan.server.batches.line_isolation import LineIsolation
from caravan.server.batches.line_starts import MAX_STARTS, QUARANTINE_STARTS, LineStarts
from caravan.server.batches.slots import Slots

MAX_UNAVAILABLE = 3  # responses 503 to a line whose engine ended while it ran, of which the last one counts
MAX_PAUSE_SECONDS = 30.0  # between two tries of a line that has no engine; they become longer
READY_SECONDS = 0.1  # between two looks at an engine that is not ready

ENDS_PROCESSES = LineError("process_ended", f"The process ended {MAX_STARTS} times while it executed this request.")

Answer = Callable[[str, str, bytes], Awaitable[LineAnswer]]  # of a key name, a path and a body

logger = logging.getLogger(__name__)


class LineRuns:
    """Runs lines, as many at a time as there are slots.

    A response is in the journal before it counts. A line without one, for whatever reason, runs again the next time.
    A line that waits for a limit or an engine has no slot meanwhile: those of other keys and models go on.
    """

    def __init__(
        self,
        store: BatchStore,
        starts: LineStarts,
        files: FileStore,
        slots: Slots,
        answer: Answer,
        is_ready: Callable[[], bool],
        retry_seconds: float,
    ) -> None:
        """`retry_seconds` pass after a response 429 or 503, and after the journal could not be written."""
        self._store = store
        self._starts = starts
        self._isolation = LineIsolation()
        self._files = files
        self._slots = slots
        self._answer = answer
        self._is_ready = is_ready
        self._retry_seconds = retry_seconds

    async def run(
        self, batch_id: str, key_name: str, input_path: Path, lines: list[InputLine], on_end: Callable[[int], None]
    ) -> None:
        """Run lines to their ends; `on_end` is called with the status of each. Raises OSError (the input file)."""
        begun = asyncio.Semaphore(self._slots.num_slots)  # also those that wait for a slot or for another try
        try:
            async with asyncio.TaskGroup() as group:
                for line in lines:
                    await begun.acquire()
                    task = group.create_task(self._run(batch_id, key_name, input_path, line, on_end))
                    task.add_done_callback(lambda _: begun.release())
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None

    async def _run(
        self, batch_id: str, key_name: str, path: Path, line: InputLine, on_end: Callable[[int], None]
    ) -> None:
        num_unfinished = self._starts.num_unfinished(batch_id, line.number)
        is_quarantined = num_unfinished >= QUARANTINE_STARTS
        num_unavailable, pause_seconds = 0, self._retry_seconds
        while True:
            async with (
                self._slots.one_for(key_name),
                self._isolation.alone() if is_quarantined else self._isolation.together(),
            ):
                if num_unfinished >= MAX_STARTS:
                    answer = ENDS_PROCESSES.answer()
                else:
                    answer = await self._try(batch_id, key_name, path, line)
                # A limit of the server or a missing engine is no fault of the line; a line that ends every engine is.
                num_unavailable += answer.outcome == "engine ended"
                if answer.outcome == "answered" or num_unavailable == MAX_UNAVAILABLE:
                    await self._keep_trying(partial(self._store.answer, batch_id, line.number, answer))
                    on_end(answer.status_code)
                    return
                await self._keep_trying(partial(self._starts.end, batch_id, line.number))
            await asyncio.sleep(pause_seconds)
            if answer.status_code == 503:
                pause_seconds = min(2 * pause_seconds, MAX_PAUSE_SECONDS)

    async def _try(self, batch_id: str, key_name: str, path: Path, line: InputLine) -> LineAnswer:
        line_request = await self._files.run(read_line, path, line.start, line.num_bytes)
        while not self._is_ready():  # noqa: ASYNC110  # it is a function of several parts
            await asyncio.sleep(READY_SECONDS)
        await self._keep_trying(partial(self._starts.begin, batch_id, line.number))
        return await self._answer(key_name, line_request.url, bytes(line_request.body))

    async def _keep_trying(self, store: Callable[[], Awaitable[None]]) -> None:
        """Write to the journal, also if the disk is full for a while: an answer was expensive."""
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
