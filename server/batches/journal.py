"""Journal: the SQLite database of files, batches and answers, in its own thread."""

import asyncio
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from caravan.server.batches.folder import FolderError

VERSION = 2  # of the tables

_TABLES = """
CREATE TABLE files (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    key_name TEXT NOT NULL,
    filename TEXT NOT NULL,
    purpose TEXT NOT NULL,
    num_bytes INTEGER NOT NULL,
    created_at INTEGER NOT NULL
);
CREATE TABLE batches (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    key_name TEXT NOT NULL,
    endpoint TEXT NOT NULL,
    input_file_id TEXT NOT NULL,
    status TEXT NOT NULL,
    metadata TEXT,
    errors TEXT,
    output_file_id TEXT,
    error_file_id TEXT,
    num_lines INTEGER NOT NULL DEFAULT 0,
    num_completed INTEGER NOT NULL DEFAULT 0,
    num_failed INTEGER NOT NULL DEFAULT 0,
    created_at INTEGER NOT NULL,
    expires_at INTEGER,
    in_progress_at INTEGER,
    finalizing_at INTEGER,
    completed_at INTEGER,
    failed_at INTEGER,
    expired_at INTEGER,
    cancelling_at INTEGER,
    cancelled_at INTEGER
);
CREATE TABLE lines (
    batch_id TEXT NOT NULL,
    number INTEGER NOT NULL,
    custom_id TEXT NOT NULL,
    start INTEGER NOT NULL,
    num_bytes INTEGER NOT NULL,
    status_code INTEGER,
    id TEXT,
    request_id TEXT,
    body BLOB,
    UNIQUE (batch_id, number)
);
"""
_NEW_TABLES = """
CREATE TABLE starts (
    batch_id TEXT NOT NULL,
    number INTEGER NOT NULL,
    is_running INTEGER NOT NULL,
    num_unfinished INTEGER NOT NULL DEFAULT 0,
    UNIQUE (batch_id, number)
);
"""  # since version 2; rows are those of unanswered lines

Result = TypeVar("Result")


class Journal:
    """A database whose transactions are on disk when they return, also after a power cut.

    One thread has the connection, so the event loop never waits for the disk.
    """

    def __init__(self, path: Path) -> None:
        """Open the database, and create its tables if it has none; raises FolderError."""
        self.path = path
        self._thread = ThreadPoolExecutor(1, "batch-journal")
        try:
            self._connection = self._thread.submit(_open, path).result()
        except BaseException:
            self._thread.shutdown()
            raise

    async def run(self, work: Callable[[sqlite3.Connection], Result], *, is_flushed: bool = True) -> Result:
        """Return the result of `work`, which is one transaction; raises sqlite3.Error, after which nothing has changed.

        A task that is cancelled meanwhile does not undo the transaction. One that is not flushed can be lost by a power
        cut, but not by the end of this process; it does not wait for the disk.
        """
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._transaction, work, is_flushed)

    def run_now(self, work: Callable[[sqlite3.Connection], Result]) -> Result:
        """Do the same outside an event loop."""
        return self._thread.submit(self._transaction, work).result()

    def close(self) -> None:
        """Close the database, after the transactions that were begun."""
        self._thread.submit(self._connection.close).result()
        self._thread.shutdown()

    def _transaction(self, work: Callable[[sqlite3.Connection], Result], is_flushed: bool = True) -> Result:
        self._connection.execute(f"PRAGMA synchronous = {'FULL' if is_flushed else 'NORMAL'}")
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            result = work(self._connection)
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise
        return result


def open_reader(path: Path) -> sqlite3.Connection:
    """Return a connection that reads while the journal is written; the caller closes it."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA query_only = ON")
    connection.row_factory = sqlite3.Row
    return connection


def _open(path: Path) -> sqlite3.Connection:
    try:
        connection = sqlite3.connect(path, isolation_level=None)
        connection.row_factory = sqlite3.Row
        try:
            connection.execute("PRAGMA auto_vacuum = FULL")  # answers of ended batches leave the file
            connection.execute("PRAGMA journal_mode = WAL")
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if version not in range(VERSION + 1):
                raise FolderError(f"{path} has version {version}; this server reads version {VERSION}.")
            if version < VERSION:
                tables = _NEW_TABLES if version else _TABLES + _NEW_TABLES
                connection.executescript(f"BEGIN; {tables} PRAGMA user_version = {VERSION}; COMMIT;")
        except BaseException:
            connection.close()
            raise
    except sqlite3.Error as error:
        raise FolderError(f"Cannot open the journal {path}: {error}.") from None
    return connection
