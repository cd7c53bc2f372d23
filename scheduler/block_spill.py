"""BlockSpill: a thread that copies cached blocks to the spill file, and reads blocks from it into the KV pool.

No step waits for it. A block is copied while sequences may use it, and perhaps while it is given away: the copy is used
only if no block has left the cache meanwhile. Reads come before writes, since sequences wait for them.
"""

import contextlib
import itertools
import logging
import queue
import threading
import time
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from caravan.model.spill_file import Found, SpillFile, UnusableSpill
from caravan.scheduler.block_pool import BlockPool
from caravan.scheduler.messages import SpillCounts

MAX_WAITING = 4096  # blocks to be written; more are dropped
REFRESH_SECONDS = 0.5  # between two looks at what another engine has written, and whether there still is one
_COPY_TRIES = 3
_READ, _WRITE, _CLOSE = range(3)  # priorities

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class BlockRead:
    """Blocks to be read from the file into blocks of the pool, which nobody else uses until it ends or is given up."""

    block_hashes: list[bytes]
    blocks: list[int]
    found: list[bool] = field(default_factory=list)  # of each block that was tried
    is_given_up: bool = False
    asked_at_seconds: float = field(default_factory=time.monotonic)


@dataclass(frozen=True)
class _Keep:
    """Cached blocks that the file should have, and those of them that it has are used."""

    block_hashes: Seq[bytes]
    blocks: Seq[int]


@dataclass(frozen=True)
class _Drop:
    """Blocks that may be wrong."""

    block_hashes: Seq[bytes]


_Message = BlockRead | _Keep | _Drop | None  # None: the end


class BlockSpill:
    """The spill file of an engine. The scheduler's thread calls its methods, which never wait."""

    def __init__(self, file: SpillFile, rows: list[NDArray[np.uint8]], pool: BlockPool) -> None:
        """`rows` are the memory of the KV pool, each [num_blocks, bytes of a block]; `start` starts the thread."""
        buffer = np.empty(file.header.block_bytes, dtype=np.uint8)
        ends = np.cumsum([row.shape[1] for row in rows])
        assert ends[-1] == len(buffer), "a slot holds one block"
        self._file, self._pool = file, pool
        self._buffer = buffer.data  # the block that is read or written
        self._parts = [*zip(rows, np.split(buffer, ends[:-1]), strict=True)]
        self._inbox: queue.PriorityQueue[tuple[int, int, _Message]] = queue.PriorityQueue()
        self._order = itertools.count()
        self._finished: queue.SimpleQueue[BlockRead] = queue.SimpleQueue()
        self._filling = threading.Lock()  # held while a block of the pool is filled
        self._dropped: set[bytes] = set()  # hashes that are being dropped
        self._is_off = False  # after an error
        self._num_refused = 0  # counted by the scheduler's thread, the others by this object's
        self._num_written = self._num_read = self._num_recycled = self._num_damaged = 0
        self._reported = (0, 0, 0, 0)
        self._refresh_at_seconds = 0.0
        self.progressed_at_seconds = 0.0  # when the thread did something last
        self._thread = threading.Thread(target=self._run, name="kv-spill", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self) -> None:
        """End the thread, after all that it was asked to do, and close the file."""
        self._send(_CLOSE, None)
        self._thread.join()

    def has(self, block_hash: bytes) -> bool:
        """Return whether the file seems to have a block."""
        return not self._is_off and block_hash in self._file.index and block_hash not in self._dropped

    def keep(self, block_hash: bytes, block: int) -> None:
        """Have a cached block written, if the file does not have it; dropped if too many wait, or it is evicted."""
        if self._is_off or self._inbox.qsize() >= MAX_WAITING:
            self._num_refused += 1
        elif not self.has(block_hash):
            self._send(_WRITE, _Keep([block_hash], [block]))

    def keep_hits(self, block_hashes: Seq[bytes], blocks: Seq[int]) -> None:
        """Record that cached blocks of one text are used again; those that the file does not have are written."""
        if block_hashes and not self._is_off and self._inbox.qsize() < MAX_WAITING:
            self._send(_WRITE, _Keep(block_hashes, blocks))

    def drop(self, block_hashes: Seq[bytes]) -> None:
        """Remove blocks that may be wrong; none of them is found from now on."""
        self._dropped.update(block_hashes)
        self._send(_WRITE, _Drop(block_hashes))

    def read(self, block_hashes: list[bytes], blocks: list[int]) -> BlockRead:
        """Read blocks in the background into held blocks of the pool; `take_finished` returns them later."""
        read = BlockRead(block_hashes, blocks)
        self._send(_READ, read)
        return read

    def give_up(self, read: BlockRead) -> bool:
        """Give up a read: nothing is written to its blocks any more. Return False if one is being filled."""
        if not self._filling.acquire(blocking=False):
            return False
        read.is_given_up = True
        self._filling.release()
        return True

    def take_finished(self) -> list[BlockRead]:
        """Return the reads that have ended since the last call. A block that is not found has any contents."""
        finished: list[BlockRead] = []
        while not self._finished.empty():
            finished.append(self._finished.get_nowait())
        return finished

    def take_counts(self) -> SpillCounts:
        """Return what has happened since the last call."""
        now = (self._num_written, self._num_read, self._num_recycled + self._num_refused, self._num_damaged)
        written, read, dropped, damaged = (new - old for new, old in zip(now, self._reported, strict=True))
        self._reported = now
        num_used, header = len(self._file.index), self._file.header
        return SpillCounts(
            num_written=written,
            num_read=read,
            num_dropped=dropped,
            num_damaged=damaged,
            used_bytes=0 if self._is_off else num_used * header.block_bytes,
            free_bytes=0 if self._is_off else (header.num_slots - num_used) * header.block_bytes,
        )

    def _send(self, priority: int, message: _Message) -> None:
        self._inbox.put((priority, next(self._order), message))

    def _run(self) -> None:
        try:
            while (message := self._next()) is not None:
                self._handle(message)
                self.progressed_at_seconds = time.monotonic()
        except (OSError, UnusableSpill) as error:
            fact = error.strerror or error if isinstance(error, OSError) else error
            logger.warning("The spill file %s is not used any more: %s.", self._file.path, fact)
            self._end()
        except Exception:
            logger.exception("The spill file %s is not used any more.", self._file.path)
            self._end()
        else:
            self._file.close()

    def _end(self) -> None:
        """Close the file, so that another engine can write it, and end all reads until the end: nothing is found."""
        self._is_off = True
        self._file.close()
        while (message := self._inbox.get()[2]) is not None:
            if isinstance(message, BlockRead):
                self._finished.put(message)

    def _next(self) -> _Message:
        """Return the next message; look at the file of another writer now and then."""
        while True:
            if time.monotonic() >= self._refresh_at_seconds:
                self._file.refresh()
                self._refresh_at_seconds = time.monotonic() + REFRESH_SECONDS
            with contextlib.suppress(queue.Empty):
                return self._inbox.get(timeout=REFRESH_SECONDS)[2]

    def _handle(self, message: BlockRead | _Keep | _Drop) -> None:
        match message:
            case BlockRead():
                try:
                    self._read(message)
                finally:
                    self._finished.put(message)
            case _Keep():
                self._keep(message)
            case _Drop():
                for block_hash in message.block_hashes:
                    self._file.drop(block_hash)
                self._dropped.difference_update(message.block_hashes)

    def _read(self, read: BlockRead) -> None:
        """Read blocks of one text up to the first that is not found."""
        for block_hash, block in zip(read.block_hashes, read.blocks, strict=True):
            found = self._file.read(block_hash, self._buffer)
            self._num_damaged += found is Found.DAMAGED
            if found is not Found.YES or block_hash in self._dropped:
                break
            with self._filling:
                if read.is_given_up:
                    break
                for row, part in self._parts:
                    row[block] = part
                read.found.append(True)
            self._num_read += 1
            self.progressed_at_seconds = time.monotonic()

    def _keep(self, keep: _Keep) -> None:
        if not self._file.is_writer:
            return
        known: list[bytes] = []
        for block_hash, block in zip(keep.block_hashes, keep.blocks, strict=True):
            if block_hash in self._file.index:
                known.append(block_hash)
            elif block_hash in self._dropped:
                continue
            elif self._copy(block_hash, block):
                self._file.write(block_hash, self._buffer)
                self._num_written += 1
            else:
                self._num_recycled += 1
            self.progressed_at_seconds = time.monotonic()
        self._file.touch(known[::-1])  # the end of a text is the first to be evicted, as in the pool

    def _copy(self, block_hash: bytes, block: int) -> bool:
        """Copy a cached block to the buffer; return False if it is not cached any more, or may have changed."""
        for _ in range(_COPY_TRIES):
            num_forgotten = self._pool.num_forgotten
            if self._pool.lookup(block_hash) != block:
                return False
            for row, part in self._parts:
                part[:] = row[block]
            if self._pool.num_forgotten == num_forgotten:
                return True
        return False
