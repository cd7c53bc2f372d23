"""LineStarts: which lines run, in the journal, so that a line that ends the process is found out."""

import sqlite3

from caravan.server.batches.journal import Journal

QUARANTINE_STARTS = 2  # unfinished ones, after which a line runs alone
MAX_STARTS = 6  # unfinished ones, after which a line has an error; it ran alone in all but the first two


class LineStarts:
    """The lines that run, and how many processes ended while each of the unanswered ones ran.

    A line that ends the process would do so after every start. Most lines that ran beside it are harmless: those that
    ran at two ends run alone after that, and only a line that runs at four more ends has an error. A server that is
    killed five times for other reasons gives no line one.
    """

    def __init__(self, journal: Journal) -> None:
        """Count the lines that ran when the process before this one ended."""
        self._journal = journal
        self._num_unfinished: dict[tuple[str, int], int] = journal.run_now(_unfinished)

    def num_unfinished(self, batch_id: str, number: int) -> int:
        """Return how many processes ended while a line ran."""
        return self._num_unfinished.get((batch_id, number), 0)

    async def begin(self, batch_id: str, number: int) -> None:
        """Record that a line runs; raises sqlite3.Error."""

        def begin(db: sqlite3.Connection) -> None:
            db.execute(
                "INSERT INTO starts (batch_id, number, is_running) VALUES (?, ?, 1) "
                "ON CONFLICT (batch_id, number) DO UPDATE SET is_running = 1",
                (batch_id, number),
            )

        await self._journal.run(begin, is_flushed=False)  # after a power cut no line is to blame

    async def end(self, batch_id: str, number: int) -> None:
        """Record that a line runs no longer, and has no answer; raises sqlite3.Error."""

        def end(db: sqlite3.Connection) -> None:
            db.execute("UPDATE starts SET is_running = 0 WHERE batch_id = ? AND number = ?", (batch_id, number))

        await self._journal.run(end, is_flushed=False)

    async def end_all(self) -> None:
        """Record that no line runs, because this process ends in an orderly way; raises sqlite3.Error."""
        await self._journal.run(lambda db: db.execute("UPDATE starts SET is_running = 0"), is_flushed=False)


def _unfinished(db: sqlite3.Connection) -> dict[tuple[str, int], int]:
    db.execute("UPDATE starts SET num_unfinished = num_unfinished + is_running, is_running = 0")
    rows = db.execute("SELECT batch_id, number, num_unfinished FROM starts WHERE num_unfinished > 0")
    return {(batch_id, number): num_unfinished for batch_id, number, num_unfinished in rows}
