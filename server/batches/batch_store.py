"""BatchStore: batches and the answers to their lines, in the journal."""

import json
import sqlite3
import uuid
from collections.abc import Callable, Sequence

import msgspec

from caravan.server.batches.answer import LineAnswer
from caravan.server.batches.file_store import NewFile, insert_file, rows_of_page
from caravan.server.batches.input_lines import InputLine
from caravan.server.batches.journal import Journal
from caravan.server.batches.objects import BatchError, BatchErrors, BatchObject, BatchStatus, RequestCounts
from caravan.server.batches.page import Page
from caravan.server.http.errors import ApiError, invalid, shown

WINDOW_SECONDS = 24 * 3600
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

    def __init__(self, journal: Journal, clock: Callable[[], float]) -> None:
        """`clock` returns the seconds since 1970."""
        self.journal = journal
        self._clock = clock

    async def create(
        self, key_name: str, input_file_id: str, endpoint: str, metadata: dict[str, str], *, expires: bool = True
    ) -> StoredBatch:
        """Store a new batch, with the status validating; raises ApiError if the key has no such input file."""
        batch_id, created_at = f"batch_{uuid.uuid4().hex}", int(self._clock())

        def create(db: sqlite3.Connection) -> StoredBatch:
            file = db.execute(
                "SELECT purpose FROM files WHERE key_name = ? AND id = ?", (key_name, input_file_id)
            ).fetchone()
            if file is None:
                raise invalid(f"`input_file_id` is {shown(input_file_id)}; there is no such file.", "input_file_id")
            if file["purpose"] != "batch":
                raise invalid("The file of `input_file_id` does not have the purpose `batch`.", "input_file_id")
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
        statuses = "('validating', 'in_progress', 'finalizing', 'cancelling')"
        query = f"SELECT * FROM batches WHERE status IN {statuses} ORDER BY number"  # noqa: S608
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

    async def begin(self, batch_id: str, lines: Sequence[InputLine]) -> None:
        """Store the lines of a batch that can run now, unless it was cancelled meanwhile."""
        now = int(self._clock())

        def begin(db: sqlite3.Connection) -> None:
            if _move(db, batch_id, ("validating",), "in_progress", now):
                db.execute("UPDATE batches SET num_lines = ? WHERE id = ?", (len(lines), batch_id))
                db.executemany(
                    "INSERT INTO lines (batch_id, number, custom_id, start, num_bytes) VALUES (?, ?, ?, ?, ?)",
                    ((batch_id, *line) for line in lines),
                )

        await self.journal.run(begin)

    async def unanswered(self, batch_id: str) -> list[InputLine]:
        """Return the lines that have no response yet, in their order."""
        query = (
            "SELECT number, custom_id, start, num_bytes FROM lines "
            "WHERE batch_id = ? AND status_code IS NULL ORDER BY number"
        )
        return await self.journal.run(lambda db: [InputLine(*row) for row in db.execute(query, (batch_id,))])

    async def answer(self, batch_id: str, number: int, answer: LineAnswer) -> None:
        """Store the response to a line and count it, in one transaction; only the first one of a line is stored."""
        count = "num_completed" if answer.status_code == 200 else "num_failed"

        def store(db: sqlite3.Connection) -> None:
            stored = db.execute(
                "UPDATE lines SET status_code = ?, id = ?, request_id = ?, body = ? "
                "WHERE batch_id = ? AND number = ? AND status_code IS NULL",
                (answer.status_code, answer.id, answer.request_id, answer.body, batch_id, number),
            )
            if stored.rowcount:
                db.execute(f"UPDATE batches SET {count} = {count} + 1 WHERE id = ?", (batch_id,))  # noqa: S608

        await self.journal.run(store)

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
            db.execute("DELETE FROM lines WHERE batch_id = ?", (batch.id,))
            is_moved = _move(db, batch.id, ("in_progress", "finalizing", "cancelling"), status, now)
            assert is_moved, "only its own task ends a batch"

        await self.journal.run(end)


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
