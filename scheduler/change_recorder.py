"""ChangeRecorder: finds out after each step what it changed, while someone subscribes to snapshots."""

import hashlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from caravan.scheduler.messages import StepStats
from caravan.scheduler.scheduler import Scheduler
from caravan.scheduler.sequence import Sequence
from caravan.scheduler.step_change import SequenceMove, SequenceTable, StepChange

MAX_CHANGES = 200  # between two snapshots; with more of them the next snapshot has tables and no changes
MAX_TABLE_BLOCKS = 4096  # of all running sequences, for tables that are sent again and again, and for marks in tables
TABLES_SECONDS = 5.0  # between two snapshots with tables
MARK_BYTES = 4


def block_mark(secret: bytes, block_hash: bytes) -> str:
    """Return a short mark of a block's hash, which differs for each recorder.

    Equal blocks have equal marks. The hash itself would let a subscriber check guesses about the texts of other keys.
    """
    return hashlib.blake2s(block_hash, key=secret, digest_size=MARK_BYTES).hexdigest()


@dataclass(slots=True)
class _Known:
    """A running sequence as it was after the step before."""

    sequence: Sequence
    table: list[int]  # the list itself: a sequence that left the batch has another one
    num_blocks: int
    num_tokens: int
    num_computed_tokens: int
    num_marked: int  # blocks whose mark was sent


class ChangeRecorder:
    """Compares the running sequences with those after the step before. The scheduler does not know about it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` returns seconds."""
        self._clock = clock
        self._secret = os.urandom(16)
        self._known: dict[int, _Known] = {}
        self._changes: list[tuple[float, StepChange]] = []  # with the time of each
        self._queued: list[int] = []
        self._step = -1  # the last one observed
        self._is_full = False  # there were too many changes since the last call of `take`
        self._tables_due_at_seconds: float | None = None  # None: with the next snapshot

    def queue(self, request_id: int) -> None:
        """Record that a request was added to the queue."""
        self._queued.append(request_id)

    def request_tables(self) -> None:
        """Let the next snapshot have tables."""
        self._tables_due_at_seconds = None

    def observe(self, scheduler: Scheduler, stats: StepStats) -> None:
        """Record what changed since the last call; `stats` are those of the step."""
        joined: list[SequenceTable] = []
        moved: list[SequenceMove] = []
        marks: list[tuple[int, str]] = []
        known_ones, has_moved = self._known, False
        for sequence in scheduler.running:
            request_id, table = sequence.request.request_id, sequence.block_table
            known = known_ones.get(request_id)
            num_tokens, num_computed = len(sequence.token_ids), sequence.num_computed_tokens
            if known is None or known.table is not table:
                joined.append(_table_of(sequence))
                known = known_ones[request_id] = _Known(sequence, table, len(table), num_tokens, num_computed, 0)
            else:
                num_new, num_more = num_tokens - known.num_tokens, num_computed - known.num_computed_tokens
                is_longer = len(table) != known.num_blocks
                has_moved = has_moved or num_new > 0 or num_more > 0 or is_longer
                if is_longer or num_new != 1 or num_more != 1:
                    moved.append(SequenceMove(request_id, num_tokens, num_computed, table[known.num_blocks :]))
                    known.num_blocks = len(table)
                known.num_tokens, known.num_computed_tokens = num_tokens, num_computed
            if sequence.num_cached_blocks > known.num_marked:
                marks += self._marks(sequence, known.num_marked)
                known.num_marked = sequence.num_cached_blocks
        ended, preempted = self._left(scheduler) if len(known_ones) > len(scheduler.running) else ([], [])
        is_new = stats.step != self._step
        if not (is_new or has_moved or joined or ended or preempted or self._queued):
            return
        self._step = stats.step
        queued, self._queued = self._queued, []
        self._add(
            StepChange(
                stats.step,
                0.0,
                stats.num_waiting,
                stats.num_used_blocks,
                stats.num_cached_blocks,
                queued,
                joined,
                moved,
                ended,
                preempted,
                marks,
            )
        )

    def take(self) -> tuple[list[StepChange], list[SequenceTable] | None, list[tuple[int, str]]]:
        """Return the changes since the last call; sometimes also the tables of all running sequences, with their marks.

        Tables are those after the last change. They are due at the start, after too many changes, and every few seconds
        unless they are large.
        """
        now = self._clock()
        changes = [msgspec.structs.replace(one, age_seconds=round(now - at, 4)) for at, one in self._changes]
        self._changes, self._is_full = [], False
        num_blocks = sum(known.num_blocks for known in self._known.values())
        is_small = num_blocks <= MAX_TABLE_BLOCKS
        due_at = self._tables_due_at_seconds
        if due_at is not None and (now < due_at or not is_small):
            return changes, None, []
        self._tables_due_at_seconds = now + TABLES_SECONDS
        tables = [_table_of(known.sequence) for known in self._known.values()]
        marks = [mark for known in self._known.values() for mark in self._marks(known.sequence, 0)] if is_small else []
        return changes, tables, marks

    def _left(self, scheduler: Scheduler) -> tuple[list[int], list[int]]:
        """Forget the sequences that left the batch; return those that ended and those that were preempted."""
        running = {sequence.request.request_id for sequence in scheduler.running}
        left = [request_id for request_id in self._known if request_id not in running]
        for request_id in left:
            del self._known[request_id]
        preempted = [request_id for request_id in left if scheduler.waiting.has(request_id)]
        return [request_id for request_id in left if request_id not in preempted], preempted

    def _marks(self, sequence: Sequence, start: int) -> list[tuple[int, str]]:
        """Return the marks of the cached blocks of a sequence, from block `start` of its table."""
        end = sequence.num_cached_blocks
        pairs = zip(sequence.block_table[start:end], sequence.block_hashes[start:end], strict=True)
        return [(block, block_mark(self._secret, block_hash)) for block, block_hash in pairs]

    def _add(self, change: StepChange) -> None:
        if self._is_full or len(self._changes) >= MAX_CHANGES:
            self._is_full = True
            self._changes.clear()
            self.request_tables()
        else:
            self._changes.append((self._clock(), change))


def _table_of(sequence: Sequence) -> SequenceTable:
    request = sequence.request
    return SequenceTable(
        request.request_id,
        sequence.num_prompt_tokens,
        request.params.max_tokens,
        sequence.num_tokens,
        sequence.num_computed_tokens,
        [*sequence.block_table],
    )
