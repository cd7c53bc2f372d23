"""FileStore: uploaded files and the outputs of batches, by API key."""

import asyncio
import os
import sqlite3
import uuid
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import ParamSpec, TypeVar

from caravan.server.batches.folder import BatchFolder
from caravan.server.batches.journal import Journal
from caravan.server.batches.objects import FileObject, Purpose
from caravan.server.batches.page import Page
from caravan.server.batches.settings import BatchLimits
from caravan.server.generation.fair_share import has_room
from caravan.server.http.errors import ApiError, invalid, shown

_NUM_THREADS = 2
OPEN_STATUSES = ("validating", "in_progress", "finalizing", "cancelling")  # of a batch that has not ended

Args = ParamSpec("Args")
Result = TypeVar("Result")


@dataclass(frozen=True)
class NewFile:
    """A complete file that the journal does not have yet."""

    id: str
    num_bytes: int


class FileStore:
    """The files of all keys; each key finds its own only.

    The contents are in the folder, the rest in the journal. A file is complete in the folder before the journal has it,
    and leaves the journal before it leaves the folder; what lies between is removed at the next start.
    """

    def __init__(self, folder: BatchFolder, journal: Journal, limits: BatchLimits, clock: Callable[[], float]) -> None:
        """`clock` returns the seconds since 1970."""
        self.limits = limits
        self._folder = folder
        self._journal = journal
        self._clock = clock
        self._threads = ThreadPoolExecutor(_NUM_THREADS, "batch-files")
        rows = journal.run_now(lambda db: db.execute("SELECT id, key_name, num_bytes FROM files").fetchall())
        folder.remove_all_but({row["id"] for row in rows})
        self.bytes_of_key: Counter[str] = Counter()  # with those of incomplete uploads and of lines in the journal
        for row in rows:
            self.bytes_of_key[row["key_name"]] += row["num_bytes"]

    async def run(self, work: Callable[Args, Result], *args: Args.args, **kwargs: Args.kwargs) -> Result:
        """Return the result of `work`, which reads or writes files, in a thread."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, lambda: work(*args, **kwargs))

    def path_of(self, file_id: str) -> Path:
        """Return where the contents of a file are."""
        return self._folder.path_of(file_id)

    def reserve(self, key_name: str, num_bytes: int) -> None:
        """Count bytes of a new file for a key; raises ApiError 413 if the folder is full."""
        if not has_room(self.bytes_of_key, key_name, num_bytes, self.limits.max_folder_bytes):
            raise ApiError(
                413,
                f"The files on this server would exceed their limit of {self.limits.max_folder_bytes} bytes "
                "(--batch-folder-size). Delete files that are not needed.",
            )
        self.count(key_name, num_bytes)

    def count(self, key_name: str, num_bytes: int) -> None:
        """Count bytes of a new file for a key without a limit: what a batch has answered is not lost."""
        self.bytes_of_key[key_name] += num_bytes

    def release(self, key_name: str, num_bytes: int) -> None:
        """Count bytes of a key that are no longer there."""
        self.bytes_of_key[key_name] -= num_bytes

    def new_part(self) -> "PartFile":
        """Return a new, empty file; raises OSError."""
        return PartFile(self._folder)

    async def add(self, key_name: str, new: NewFile, filename: str, purpose: Purpose) -> FileObject:
        """Store a complete file in the journal, for which its bytes were reserved."""
        created_at = int(self._clock())
        await self._journal.run(lambda db: insert_file(db, key_name, new, filename, purpose, created_at))
        return FileObject(id=new.id, bytes=new.num_bytes, created_at=created_at, filename=filename, purpose=purpose)

    async def find(self, key_name: str, file_id: str) -> FileObject:
        """Return a file of a key; raises ApiError 404."""
        return await self._journal.run(lambda db: _object(_row(db, key_name, file_id)))

    async def page(self, key_name: str, asked: Page, purpose: str | None) -> tuple[list[FileObject], bool]:
        """Return a page of a key's files, and whether there are more; raises ApiError 400 for an unknown `after`."""

        def read(db: sqlite3.Connection) -> tuple[list[FileObject], bool]:
            rows, has_more = rows_of_page(db, "files", key_name, asked, purpose)
            return [_object(row) for row in rows], has_more

        return await self._journal.run(read)

    async def delete(self, key_name: str, file_id: str) -> None:
        """Delete a file of a key; raises ApiError 404, or 400 if a batch still reads it."""

        def delete(db: sqlite3.Connection) -> int:
            num_bytes: int = _row(db, key_name, file_id)["num_bytes"]
            marks = ", ".join("?" * len(OPEN_STATUSES))
            batch = db.execute(
                f"SELECT id FROM batches WHERE input_file_id = ? AND status IN ({marks})",  # noqa: S608
                (file_id, *OPEN_STATUSES),
            ).fetchone()
            if batch is not None:
                raise invalid(f"The batch {batch['id']} needs this file. Cancel it, or wait for its end.", "file_id")
            db.execute("DELETE FROM files WHERE id = ?", (file_id,))
            return num_bytes

        self.release(key_name, await self._journal.run(delete))
        await self.run(self._folder.remove, file_id)

    async def forget(self, key_name: str, new: NewFile) -> None:
        """Remove a complete file that the journal does not have."""
        self.release(key_name, new.num_bytes)
        await self.run(self._folder.remove, new.id)

    def close(self) -> None:
        """End the threads, after the work that was begun."""
        self._threads.shutdown()


class PartFile:
    """A file that is being written; every method but the first blocks, so call them in a thread."""

    def __init__(self, folder: BatchFolder) -> None:
        self.id = f"file-{uuid.uuid4().hex}"
        self.num_bytes = 0
        self._folder = folder
        self._descriptor = folder.create_part(self.id)

    def write(self, data: bytes) -> None:
        """Append bytes; raises OSError."""
        view = memoryview(data)
        while view:
            view = view[os.write(self._descriptor, view) :]
        self.num_bytes += len(data)

    def complete(self) -> NewFile:
        """Return the file, which is on the disk; raises OSError."""
        os.fsync(self._descriptor)
        self._close()
        self._folder.complete(self.id)
        return NewFile(self.id, self.num_bytes)

    def discard(self) -> None:
        """Remove the file; does nothing after `complete` but remove what the journal will not have."""
        self._close()
        self._folder.remove(self.id)

    def _close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def insert_file(
    db: sqlite3.Connection, key_name: str, new: NewFile, filename: str, purpose: Purpose, created_at: int
) -> None:
    """Add a file to the journal."""
    db.execute(
        "INSERT INTO files (id, key_name, filename, purpose, num_bytes, created_at) VALUES (?, ?, ?, ?, ?, ?)",
        (new.id, key_name, filename, purpose, new.num_bytes, created_at),
    )


def rows_of_page(
    db: sqlite3.Connection, table: str, key_name: str, page: Page, purpose: str | None = None
) -> tuple[list[sqlite3.Row], bool]:
    """Return a page of a key's rows, and whether there are more; raises ApiError 400 for an unknown `after`."""
    sign, order = ("<", "DESC") if page.is_descending else (">", "ASC")
    condition, values = "key_name = ?", [key_name]
    if purpose is not None:
        condition += " AND purpose = ?"
        values.append(purpose)
    if page.after is not None:
        found = db.execute(
            f"SELECT number FROM {table} WHERE key_name = ? AND id = ?",  # noqa: S608  # a name of ours
            (key_name, page.after),
        ).fetchone()
        if found is None:
            raise invalid(f"`after` is {shown(page.after)}; there is no such id in the list.", "after")
        condition += f" AND number {sign} {found['number']}"
    rows = db.execute(
        f"SELECT * FROM {table} WHERE {condition} ORDER BY number {order} LIMIT ?",  # noqa: S608
        (*values, page.limit + 1),
    ).fetchall()
    return rows[: page.limit], len(rows) > page.limit


def _row(db: sqlite3.Connection, key_name: str, file_id: str) -> sqlite3.Row:
    row: sqlite3.Row | None = db.execute(
        "SELECT * FROM files WHERE key_name = ? AND id = ?", (key_name, file_id)
    ).fetchone()
    if row is None:
        raise ApiError(404, f"There is no file {shown(file_id)}.", param="file_id")
    return row


def _object(row: sqlite3.Row) -> FileObject:
    return FileObject(
        id=row["id"],
        bytes=row["num_bytes"],
        created_at=row["created_at"],
        filename=row["filename"],
        purpose=row["purpose"],
    )
