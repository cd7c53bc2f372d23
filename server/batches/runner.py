"""BatchRunner: takes each batch from one status to the next."""

import asyncio
import logging
import time
from collections.abc import Callable, Set
from functools import partial

from caravan.server.batches.answer import LineError, Part, write_answers
from caravan.server.batches.batch_metrics import BatchMetrics
from caravan.server.batches.batch_store import BatchStore, StoredBatch
from caravan.server.batches.file_store import FileStore, NewFile
from caravan.server.batches.input_lines import check_lines
from caravan.server.batches.line_runs import LineRuns
from caravan.server.batches.objects import BatchStatus

CLOCK_SECONDS = 1.0  # between two looks at the time when a batch expires
RETRY_SECONDS = 5.0  # after the folder could not be read or written
PAGE_LINES = 4096  # of a batch, in memory

EXPIRED = LineError("batch_expired", "This request could not be executed before the completion window expired.")
CANCELLED = LineError("batch_cancelled", "This request was not executed because the batch was cancelled.")

logger = logging.getLogger(__name__)


class BatchRunner:
    """A task for each batch that has not ended.

    The task reads the batch's status and does what comes next, so that it continues what an earlier process began.
    """

    def __init__(
        self,
        store: BatchStore,
        files: FileStore,
        lines: LineRuns,
        metrics: BatchMetrics,
        key_names: Set[str],
        clock: Callable[[], float],
        *,
        clock_seconds: float = CLOCK_SECONDS,
        retry_seconds: float = RETRY_SECONDS,
    ) -> None:
        """`key_names` are those whose lines may run; `clock` returns the seconds since 1970."""
        self._store = store
        self._files = files
        self._lines = lines
        self._metrics = metrics
        self._key_names = key_names
        self._clock = clock
        self._clock_seconds = clock_seconds
        self._retry_seconds = retry_seconds
        self._tasks: dict[str, asyncio.Task[None]] = {}  # by batch
        self._cancelled: dict[str, asyncio.Event] = {}

    async def start(self) -> None:
        """Continue the batches that have not ended."""
        for batch in await self._store.unfinished():
            self.begin(batch.id)

    def begin(self, batch_id: str) -> None:
        """Run a batch."""
        self._cancelled[batch_id] = asyncio.Event()
        task = self._tasks[batch_id] = asyncio.create_task(self._run(batch_id))
        task.add_done_callback(lambda _: self._forget(batch_id))

    def cancel(self, batch_id: str) -> None:
        """End the lines of a batch that has the status cancelling."""
        if (event := self._cancelled.get(batch_id)) is not None:
            event.set()

    async def close(self) -> None:
        """Stop all batches; they continue with the next start."""
        tasks = [*self._tasks.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _forget(self, batch_id: str) -> None:
        del self._tasks[batch_id], self._cancelled[batch_id]
        self._metrics.end(batch_id)

    async def _run(self, batch_id: str) -> None:
        while True:
            try:
                return await self._advance(batch_id)
            except Exception as error:  # such as a full disk
                logger.error("The batch %s stops for %g s.", batch_id, self._retry_seconds, exc_info=error)
                await asyncio.sleep(self._retry_seconds)

    async def _advance(self, batch_id: str) -> None:
        started_at_seconds = time.monotonic()
        batch = await self._store.get(batch_id)
        if batch.shown.status == "validating":
            path = self._files.path_of(batch.shown.input_file_id)
            checked = await self._files.run(check_lines, path, batch.shown.endpoint, self._files.limits)
            if checked.errors:
                await self._store.fail(batch_id, checked.errors)
            else:
                await self._store.begin(batch, checked.lines)
            batch = await self._store.get(batch_id)
        if batch.shown.status == "in_progress":
            if await self._run_lines(batch):
                await self._store.finalize(batch_id)
            batch = await self._store.get(batch_id)
        if batch.shown.status != "failed":
            await self._finalize(batch)
        batch = await self._store.get(batch_id)
        self._metrics.count_end(batch.shown.status)
        logger.info("batch", extra=_log_fields(batch, time.monotonic() - started_at_seconds))

    async def _run_lines(self, batch: StoredBatch) -> bool:
        """Run the lines that have no response; return False if the batch expired or was cancelled before their ends."""
        counts = batch.shown.request_counts
        self._metrics.begin(batch.id, counts.total - counts.completed - counts.failed)
        running = asyncio.create_task(self._run_pages(batch))
        stopping = asyncio.create_task(self._stopped(batch))
        try:
            await asyncio.wait({running, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not running.done():
                return False
            running.result()
            return True
        finally:
            running.cancel()
            stopping.cancel()
            await asyncio.gather(running, stopping, return_exceptions=True)

    async def _run_pages(self, batch: StoredBatch) -> None:
        path = self._files.path_of(batch.shown.input_file_id)
        count = partial(self._metrics.count_line, batch.id)
        while pending := await self._store.unanswered(batch.id, PAGE_LINES):
            await self._wait_for_key(batch)
            await self._lines.run(batch.id, batch.key_name, path, pending, count)

    async def _wait_for_key(self, batch: StoredBatch) -> None:
        """Return when the server has the key of a batch, which may be after it has expired."""
        if batch.key_name in self._key_names:
            return
        logger.warning("The batch %s waits: the server has no key %r.", batch.id, batch.key_name)
        while batch.key_name not in self._key_names:  # noqa: ASYNC110  # keys change with a signal, seldom
            await asyncio.sleep(self._retry_seconds)

    async def _stopped(self, batch: StoredBatch) -> None:
        """Return when a batch expires or is cancelled."""
        event, expires_at = self._cancelled[batch.id], batch.shown.expires_at
        assert expires_at is not None, "only a batch without a server has no window"
        while not event.is_set() and self._clock() < expires_at:
            try:
                await asyncio.wait_for(event.wait(), self._clock_seconds)
            except TimeoutError:
                continue

    async def _finalize(self, batch: StoredBatch) -> None:
        """Write the files of a batch and give it its last status."""
        ends: dict[BatchStatus, tuple[BatchStatus, LineError]] = {
            "finalizing": ("completed", CANCELLED),
            "cancelling": ("cancelled", CANCELLED),
            "in_progress": ("expired", EXPIRED),
        }
        status, unanswered = ends[batch.shown.status]
        written: list[NewFile] = []
        try:
            output = await self._write(batch, "completed", unanswered, written)
            errors = await self._write(batch, "failed", unanswered, written)
            await self._store.end(batch, status, output, errors)
        except Exception:
            for new in written:
                await self._files.forget(batch.key_name, new)
            raise

    async def _write(
        self, batch: StoredBatch, part: Part, unanswered: LineError, written: list[NewFile]
    ) -> NewFile | None:
        new = await self._files.run(
            lambda: write_answers(self._files.new_part(), self._store.journal.path, batch.id, part, unanswered)
        )
        if new is not None:
            written.append(new)
            self._files.count(batch.key_name, new.num_bytes)
        return new


def _log_fields(batch: StoredBatch, seconds: float) -> dict[str, object]:
    """Return the fields of the log line of a batch that has ended; seconds since this process began with it."""
    counts = batch.shown.request_counts
    return {
        "batch": batch.id,
        "key": batch.key_name or "-",
        "status": batch.shown.status,
        "lines": counts.total,
        "completed": counts.completed,
        "failed": counts.failed,
        "seconds": round(seconds, 3),
    }
