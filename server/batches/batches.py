"""Batches: the folder, the stores and the runner of a server's files and batches."""

import logging
import sqlite3
import time
from collections.abc import Callable, Set
from pathlib import Path

from prometheus_client import CollectorRegistry

from caravan.server.batches.batch_metrics import BatchMetrics
from caravan.server.batches.batch_store import BatchStore
from caravan.server.batches.file_store import FileStore
from caravan.server.batches.folder import BatchFolder
from caravan.server.batches.journal import Journal
from caravan.server.batches.line_runs import Answer, LineRuns
from caravan.server.batches.line_starts import LineStarts
from caravan.server.batches.runner import CLOCK_SECONDS, RETRY_SECONDS, BatchRunner
from caravan.server.batches.settings import BatchLimits
from caravan.server.batches.slots import Slots
from caravan.server.generation.context import NO_KEY

LINE_RETRY_SECONDS = 1.0

logger = logging.getLogger(__name__)


class Batches:
    """Files and batches in one folder. `connect` and then `start` run what an earlier process left."""

    def __init__(
        self,
        path: Path,
        limits: BatchLimits,
        *,
        key_names: Set[str] = frozenset({NO_KEY}),
        clock: Callable[[], float] = time.time,
        clock_seconds: float = CLOCK_SECONDS,
        retry_seconds: float = RETRY_SECONDS,
    ) -> None:
        """Open the folder; raises FolderError.

        Batches of other keys than `key_names`, which may change, wait. `clock` returns the seconds since 1970, looked
        at every `clock_seconds`.
        """
        self._folder = BatchFolder(path)
        try:
            self.journal = Journal(self._folder.journal)
        except BaseException:
            self._folder.close()
            raise
        self._key_names = key_names
        self._clock, self._clock_seconds, self._retry_seconds = clock, clock_seconds, retry_seconds
        self.files = FileStore(self._folder, self.journal, limits, clock)
        self.batches = BatchStore(self.journal, clock, self.files)
        self._starts = LineStarts(self.journal)
        self.runner: BatchRunner | None = None

    def connect(
        self,
        answer: Answer,
        is_ready: Callable[[], bool],
        *,
        num_slots: int,
        registry: CollectorRegistry,
        model_name: str,
    ) -> None:
        """Set what answers the lines, how many at a time, and where metrics go; lines begin while `is_ready`."""
        slots = Slots(num_slots)
        batch_metrics = BatchMetrics(registry, model_name, lambda: slots.num_taken)
        line_retry_seconds = min(LINE_RETRY_SECONDS, self._retry_seconds)
        lines = LineRuns(self.batches, self._starts, self.files, slots, answer, is_ready, line_retry_seconds)
        self.runner = BatchRunner(
            self.batches,
            self.files,
            lines,
            batch_metrics,
            self._key_names,
            self._clock,
            clock_seconds=self._clock_seconds,
            retry_seconds=self._retry_seconds,
        )

    async def start(self) -> None:
        """Continue the batches that have not ended."""
        assert self.runner is not None, "connect comes first"
        await self.runner.start()

    async def close(self) -> None:
        """Stop all batches and close the folder."""
        if self.runner is not None:
            await self.runner.close()
            await self._end_starts()
        self.files.close()
        self.journal.close()
        self._folder.close()

    async def _end_starts(self) -> None:
        try:
            await self._starts.end_all()
        except sqlite3.Error as error:
            logger.error("The batch journal cannot be written: %s. The lines that ran count as unfinished.", error)
