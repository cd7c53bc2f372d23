"""BatchStore: batches and the answers to their lines, in the journal."""

import json
import sqlite3
import uuid
from collections import Counter
from collections.abc import Callable, Sequence

import msgspec

from caravan.server.batches.answer import LineAnswer
from caravan.server.batches.file_store import OPEN_STATUSES, FileStore, NewFile, insert_file, rows_of_page
from caravan.server.batches.input_lines import InputLine
from caravan.server.batches.journal import Journal
from caravan.server.batches.objects import BatchError, BatchErrors, BatchObject, BatchStatus, RequestCounts
from caravan.server.batches.page import Page
from caravan.server.batches.settings import BatchLimits
from caravan.server.http.errors import ApiError, invalid, shown

WINDOW_SECONDS = 24 * 3600
_ROW_BYTES = 192  # of a line in the journal, without its custom_id and its answer
_RETRY_SECONDS = 60  # after a batch over the limit
_TIMES = (
    *("created_at", "in_progress_at", "expires_at", "finalizing_at", "completed_at"),
    *("failed_at", "expired_at", "cancelling_at", "cancelled_at"),
)


class StoredBatch(msgspec.Struct, frozen=True):
    """A batch and the API key that made it."""

    key_name: str
    shown: BatchObject

    @property
    def id(self) -> str:
        """The batch's id."""
        return self.shown.id


class BatchStore:
    """The batches of all keys; each key finds its own only.

    A batch moves from one status to the next in the transaction that makes the next one true, so a process that ends at
    any time leaves a status from which another one can continue.
    """

    def __init__(self, journal: Journal, clock: Callable[[], float], files: FileStore) -> None:
        """`clock` returns the seconds since 1970; `files` has the limits, and counts what the journal takes, too."""
        self.journal = journal
        self._clock = clock
        self._files = files
        self._num_bytes: Counter[str] = Counter()  # of lines and answers, by batch
        for batch_id, key_name, num_bytes in journal.run_now(_sizes):
            self._count(batch_id, key_name, num_bytes)

    async def create(
        self, key_name: str, input_file_id: str, endpoint: str, metadata: dict[str, str], *, expires: bool = True
    ) -> StoredBatch:
        """Store a new batch, with the status validating, and forget the key's oldest ended ones over the limit.

        Raises ApiError 400 if the key has no such input file, 429 if it has too many batches that have not ended.
        """
        batch_id, created_at = f"batch_{uuid.uuid4().hex}", int(self._clock())

        def create(db: sqlite3.Connection) -> StoredBatch:
            file = db.execute(
                "SELECT purpose FROM files WHERE key_name = ? AND id = ?", (key_name, input_file_id)
            ).fetchone()
            if file is None:
                raise invalid(f"`input_file_id` is {shown(input_file_id)}; there is no such file.", "input_file_id")
            if file["purpose"] != "batch":
                raise invalid("The file of `input_file_id` does not have the purpose `batch`.", "input_file_id")
            _make_room(db, key_name, self._files.limits)
            db.execute(
                "INSERT INTO batches (id, key_name, endpoint, input_file_id, status, metadata, created_at, expires_at) "
                "VALUES (?, ?, ?, ?, 'validating', ?, ?, ?)",
                (
                    *(batch_id, key_name, endpoint, input_file_id, json.dumps(metadata) if metadata else None),
                    *(created_at, created_at + WINDOW_SECONDS if expires else None),
                ),
            )
            return _stored(_row(db, batch_id))

        return await self.journal.run(create)

    async def get(self, batch_id: str) -> StoredBatch:
        """Return a batch of any key."""
        return await self.journal.run(lambda db: _stored(_row(db, batch_id)))

    async def find(self, key_name: str, batch_id: str) -> BatchObject:
        """Return a batch of a key; raises ApiError 404."""
        return await self.journal.run(lambda db: _own(db, key_name, batch_id))

    async def page(self, key_name: str, asked: Page) -> tuple[list[BatchObject], bool]:
        """Return a page of a key's batches, and whether there are more; raises ApiError 400 for an unknown `after`."""

        def read(db: sqlite3.Connection) -> tuple[list[BatchObject], bool]:
            rows, has_more = rows_of_page(db, "batches", key_name, asked)
            return [_stored(row).shown for row in rows], has_more

        return await self.journal.run(read)

    async def unfinished(self) -> list[StoredBatch]:
        """Return the batches of all keys that have not ended, oldest first."""
        query = f"SELECT * FROM batches WHERE status IN {OPEN_STATUSES} ORDER BY number"  # noqa: S608  # ours
        return await self.journal.run(lambda db: [_stored(row) for row in db.execute(query)])

    async def cancel(self, key_name: str, batch_id: str) -> BatchObject:
        """Set the status cancelling; raises ApiError 404, or 400 if it is too late."""
        now = int(self._clock())

        def cancel(db: sqlite3.Connection) -> BatchObject:
            batch = _own(db, key_name, batch_id)
            if batch.status == "cancelling":
                return batch
            if not _move(db, batch_id, ("validating", "in_progress"), "cancelling", now):
                raise invalid(f"The batch cannot be cancelled: its status is {batch.status}.", "batch_id")
            return _stored(_row(db, batch_id)).shown

        return await self.journal.run(cancel)

    async def fail(self, batch_id: str, errors: Sequence[BatchError]) -> None:
        """End a batch whose input file is wrong, unless it was cancelled meanwhile."""
        text, now = msgspec.json.encode(errors).decode(), int(self._clock())

        def fail(db: sqlite3.Connection) -> None:
            if _move(db, batch_id, ("validating",), "failed", now):
                db.execute("UPDATE batches SET errors = ? WHERE id = ?", (text, batch_id))

        await self.journal.run(fail)

    async def begin(self, batch: StoredBatch, lines: Sequence[InputLine]) -> None:
        """Store the lines of a batch that can run now, unless it was cancelled meanwhile; it fails without room."""
        now = int(self._clock())

        def begin(db: sqlite3.Connection) -> int:
            if not _move(db, batch.id, ("validating",), "in_progress", now):
                return 0
            db.execute("UPDATE batches SET num_lines = ? WHERE id = ?", (len(lines), batch.id))
            db.executemany(
                "INSERT INTO lines (batch_id, number, custom_id, start, num_bytes) VALUES (?, ?, ?, ?, ?)",
                ((batch.id, *line) for line in lines),
            )
            return num_bytes

        num_bytes = sum(_ROW_BYTES + len(line.custom_id.encode()) for line in lines)
        try:
            self._files.reserve(batch.key_name, num_bytes)
        except ApiError as full:
            return await self.fail(batch.id, [BatchError(code="batch_folder_full", line=None, message=full.message)])
        try:
            self._count(batch.id, batch.key_name, await self.journal.run(begin))
        finally:
            self._files.release(batch.key_name, num_bytes)

    async def unanswered(self, batch_id: str, limit: int = -1) -> list[InputLine]:
        """Return the lines that have no response yet, in their order: the first `limit`, or all."""
        query = (
            "SELECT number, custom_id, start, num_bytes FROM lines "
            "WHERE batch_id = ? AND status_code IS NULL ORDER BY number LIMIT ?"
        )
        return await self.journal.run(lambda db: [InputLine(*row) for row in db.execute(query, (batch_id, limit))])

    async def answer(self, batch_id: str, number: int, answer: LineAnswer) -> None:
        """Store the response to a line and count it, in one transaction; only the first one of a line is stored."""
        count = "num_completed" if answer.status_code == 200 else "num_failed"

        def store(db: sqlite3.Connection) -> str | None:
            stored = db.execute(
                "UPDATE lines SET status_code = ?, id = ?, request_id = ?, body = ? "
                "WHERE batch_id = ? AND number = ? AND status_code IS NULL",
                (answer.status_code, answer.id, answer.request_id, answer.body, batch_id, number),
            )
            if not stored.rowcount:
                return None
            db.execute(f"UPDATE batches SET {count} = {count} + 1 WHERE id = ?", (batch_id,))  # noqa: S608
            db.execute("DELETE FROM starts WHERE batch_id = ? AND number = ?", (batch_id, number))
            return str(_row(db, batch_id)["key_name"])

        if (key_name := await self.journal.run(store)) is not None:
            self._count(batch_id, key_name, len(answer.body))

    async def finalize(self, batch_id: str) -> None:
        """Set the status finalizing, unless the batch was cancelled meanwhile."""
        now = int(self._clock())
        await self.journal.run(lambda db: _move(db, batch_id, ("in_progress",), "finalizing", now))

    async def end(
        self, batch: StoredBatch, status: BatchStatus, output: NewFile | None, errors: NewFile | None
    ) -> None:
        """Give a batch its last status and its files, whose lines leave the journal."""
        now = int(self._clock())

        def end(db: sqlite3.Connection) -> None:
            for name, new in (("output", output), ("error", errors)):
                if new is not None:
                    filename = f"{batch.id}_{name}.jsonl"
                    insert_file(db, batch.key_name, new, filename, "batch_output", now)
                    db.execute(
                        f"UPDATE batches SET {name}_file_id = ? WHERE id = ?",  # noqa: S608  # one of two names
                        (new.id, batch.id),
                    )
            for table in ("lines", "starts"):
                db.execute(f"DELETE FROM {table} WHERE batch_id = ?", (batch.id,))  # noqa: S608  # one of two names
            is_moved = _move(db, batch.id, ("in_progress", "finalizing", "cancelling"), status, now)
            assert is_moved, "only its own task ends a batch"

        await self.journal.run(end)
        self._files.release(batch.key_name, self._num_bytes.pop(batch.id, 0))

    def _count(self, batch_id: str, key_name: str, num_bytes: int) -> None:
        """Count bytes in the journal that leave it at the end of a batch."""
        self._num_bytes[batch_id] += num_bytes
        self._files.count(key_name, num_bytes)


def _sizes(db: sqlite3.Connection) -> list[tuple[str, str, int]]:
    """Return the batches that have lines in the journal, with their keys and bytes."""
    rows = db.execute(
        "SELECT batch_id, key_name, SUM(? + length(CAST(custom_id AS BLOB)) + ifnull(length(body), 0)) "
        "FROM lines JOIN batches ON batches.id = batch_id GROUP BY batch_id",
        (_ROW_BYTES,),
    )
    return [(batch_id, key_name, num_bytes) for batch_id, key_name, num_bytes in rows]


def _make_room(db: sqlite3.Connection, key_name: str, limits: BatchLimits) -> None:
    """Forget the oldest ended batches of a key over the limit; raises ApiError 429 if too many have not ended."""
    (num_open,) = db.execute(
        f"SELECT count(*) FROM batches WHERE key_name = ? AND status IN {OPEN_STATUSES}",  # noqa: S608
        (key_name,),
    ).fetchone()
    if num_open >= limits.max_open_batches:
        raise ApiError(
            429,
            f"{num_open} batches have not ended; the limit is {limits.max_open_batches} (--batch-max-open). Wait for "
            "the end of one, or cancel one.",
            kind="rate_limit_error",
            code="too_many_batches",
            retry_after=_RETRY_SECONDS,
        )
    ended = f"key_name = ? AND status NOT IN {OPEN_STATUSES}"
    db.execute(
        f"DELETE FROM batches WHERE {ended} AND number NOT IN "  # noqa: S608
        f"(SELECT number FROM batches WHERE {ended} ORDER BY number DESC LIMIT ?)",
        (key_name, key_name, limits.max_kept_batches),
    )


def _move(db: sqlite3.Connection, batch_id: str, before: Sequence[str], after: str, now: int) -> bool:
    """Change a batch's status and set its time; return False if the status was another one."""
    marks = ", ".join("?" * len(before))
    moved = db.execute(
        f"UPDATE batches SET status = ?, {after}_at = ? WHERE id = ? AND status IN ({marks})",  # noqa: S608
        (after, now, batch_id, *before),
    )
    return moved.rowcount == 1


def _row(db: sqlite3.Connection, batch_id: str) -> sqlite3.Row:
    row: sqlite3.Row = db.execute("SELECT * FROM batches WHERE id = ?", (batch_id,)).fetchone()
    return row


def _own(db: sqlite3.Connection, key_name: str, batch_id: str) -> BatchObject:
    row = _row(db, batch_id)
    if row is None or row["key_name"] != key_name:
        raise ApiError(404, f"There is no batch {shown(batch_id)}.", param="batch_id")
    return _stored(row).shown


def _stored(row: sqlite3.Row) -> StoredBatch:
    errors = None if row["errors"] is None else msgspec.json.decode(row["errors"], type=list[BatchError])
    return StoredBatch(
        row["key_name"],
        BatchObject(
            id=row["id"],
            endpoint=row["endpoint"],
            errors=None if errors is None else BatchErrors(data=errors),
            input_file_id=row["input_file_id"],
            status=row["status"],
            output_file_id=row["output_file_id"],
            error_file_id=row["error_file_id"],
            request_counts=RequestCounts(
                total=row["num_lines"], completed=row["num_completed"], failed=row["num_failed"]
            ),
            metadata=None if row["metadata"] is None else json.loads(row["metadata"]),
            **{name: row[name] for name in _TIMES},
        ),
    )
