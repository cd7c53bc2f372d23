"""SpillFile: blocks of the KV cache in a file of fixed size, which outlives the process that wrote them.

Header, a counter of changes, index, slots. Everything is read and written by system calls, never through a mapping: a
file that another program cuts off is then a short read and not a signal that ends the process. What was written is in
the page cache, which outlives a killed process as shared memory does.

One process writes, the one that holds the lock; others read meanwhile, and the first that finds the lock free is the
next writer. A slot is read into memory of the reader, and used only if the checksum of that copy fits: SHA-256 over the
key of the file, the hash of the block and its bytes. So whatever another process or a disk does to the file, a block is
the one that was written, or is not found.
"""

import contextlib
import fcntl
import hashlib
import os
import stat
from collections.abc import Iterator
from enum import Enum
from pathlib import Path

from caravan.model.open_file import is_at, ownership_problem
from caravan.model.spill_header import (
    MAGIC,
    PAGE_BYTES,
    SpillHeader,
    SpillKey,
    encode_spill_header,
    is_empty_or_spill,
    pages,
    read_spill_header,
)
from caravan.model.spill_index import EMPTY, ENTRY, SpillIndex, entry_bytes

_COUNTER_BYTES = 8
_MAX_TRIES = 5  # to open a file that others remove meanwhile


class UnusableSpill(Exception):
    """A spill file cannot be used; the text is the end of a sentence that says why."""


class Found(Enum):
    """What came of reading a block."""

    YES = "yes"
    NO = "no"  # it is not in the file, perhaps not any more
    DAMAGED = "damaged"


class SpillFile:
    """An open spill file. One thread uses it; another one may ask whether the index has a block."""

    def __init__(
        self, path: Path, key: SpillKey, model_path: str, block_bytes: int, num_bytes: int, *, is_in_cache: bool = False
    ) -> None:
        """Open a file of up to num_bytes, and create or empty it where it is not one for this key.

        A file of another kind is emptied only in the cache, where all files are Caravan's. Raises OSError (also if the
        disk has too little space), or UnusableSpill.
        """
        self.path = path
        self.header = _sized_header(key, model_path, block_bytes, num_bytes)
        self._is_in_cache = is_in_cache
        self.is_writer = False
        self._head = encode_spill_header(self.header)
        self._digest = self.header.digest
        self._counter_offset = len(self._head)
        self._index_offset = self._counter_offset + PAGE_BYTES
        self._slots_offset = self._index_offset + pages(self.header.num_slots * ENTRY.itemsize)
        self._stride = pages(block_bytes)
        self.num_bytes = self._slots_offset + self.header.num_slots * self._stride
        self.index = SpillIndex(self.header.num_slots)
        self._change = -1  # the counter when the index was read last
        self.emptied = ""  # why the file was emptied, for people
        self._descriptor = -1
        for _ in range(_MAX_TRIES):
            self._descriptor = _open_private(path)
            with _closed_on_error(self._descriptor):
                if not self._lock():
                    self._read_only()
                    return
                if is_at(self._descriptor, path):
                    self._become_writer()
                    return
            os.close(self._descriptor)
        raise UnusableSpill("other programs remove it again and again")

    def close(self) -> None:
        """Close the file, and give back the lock."""
        os.close(self._descriptor)

    def read(self, block_hash: bytes, buffer: memoryview) -> Found:
        """Read a block into a buffer of block_bytes, which holds it only if the answer is YES. Raises nothing."""
        slot = self.index.slot_of(block_hash)
        if slot is None:
            return Found.NO
        try:
            entry = self._entry(slot)
            is_damaged = self.is_writer  # else the writer may have used the slot again
            if entry[:32] == block_hash:
                num_read = os.preadv(self._descriptor, [buffer], self._slot_offset(slot))
                if num_read == len(buffer) and entry[32:64] == self._checksum(block_hash, buffer):
                    return Found.YES
                is_damaged = is_damaged or entry == self._entry(slot)
        except OSError:  # of a disk that cannot read
            is_damaged = True
        with contextlib.suppress(OSError):
            self._drop(slot)
        return Found.DAMAGED if is_damaged else Found.NO

    def write(self, block_hash: bytes, block: memoryview) -> None:
        """Write a block of block_bytes, in the place of the least recently used one. Only for the writer.

        The entry is empty until the slot is complete, so a process that ends in between leaves no wrong one. Raises
        OSError.
        """
        slot = self.index.take_slot()
        checksum = self._checksum(block_hash, block)
        self._write(entry_bytes(EMPTY, EMPTY, self.index.tick()), self._entry_offset(slot))
        self.index.forget_slot(slot)
        self._write(block, self._slot_offset(slot))
        self._write(entry_bytes(block_hash, checksum, self.index.tick()), self._entry_offset(slot))
        self._count_change()
        self.index.put(block_hash, slot)

    def touch(self, block_hashes: list[bytes]) -> None:
        """Record that blocks were used, the last one last; if this is the writer. Raises OSError."""
        for block_hash in block_hashes:
            slot = self.index.slot_of(block_hash)
            if slot is not None and self.is_writer:
                self._write(self.index.tick().to_bytes(8, "little"), self._entry_offset(slot) + 64)
                self.index.touch(block_hash)

    def drop(self, block_hash: bytes) -> None:
        """Remove a block that must not be used again; a reader only forgets it. Raises OSError."""
        slot = self.index.slot_of(block_hash)
        if slot is not None:
            self._drop(slot)

    def refresh(self) -> None:
        """Take over what the writer has written; become the writer if there is none any more.

        Raises OSError, or UnusableSpill if the file is another one's now, or removed.
        """
        if self.is_writer:
            return
        if self._lock():
            if not is_at(self._descriptor, self.path):
                raise UnusableSpill("it was removed")
            self._become_writer()
        elif self._read_counter() != self._change:
            self._read_only()

    def _become_writer(self) -> None:
        known = read_spill_header(self._descriptor)
        size = os.fstat(self._descriptor).st_size
        if known != self.header or size != self.num_bytes:
            if known is None and not self._is_in_cache and not is_empty_or_spill(self._descriptor):
                raise UnusableSpill("it is a file of another kind")
            self.emptied = _difference(known, self.header, size)
            self._empty()
        else:
            self.index, self._change = SpillIndex(self.header.num_slots), -1
            self._read_index()
        self.is_writer = True

    def _empty(self) -> None:
        """Give the file its mark, its size on the disk, and then its header: what is interrupted is emptied again."""
        os.ftruncate(self._descriptor, 0)
        try:
            self._write(MAGIC, 0)
            os.posix_fallocate(self._descriptor, 0, self.num_bytes)
            self._write(self._head, 0)
        except OSError:
            os.ftruncate(self._descriptor, 0)
            raise
        self.index = SpillIndex(self.header.num_slots)

    def _read_only(self) -> None:
        known = read_spill_header(self._descriptor)
        if known is not None and known != self.header:
            difference = _difference(known, self.header, self.num_bytes)
            raise UnusableSpill(f"another engine uses it, and {difference}")
        if known is not None:  # else the writer is creating it
            self._read_index()

    def _read_index(self) -> None:
        since, self._change = self._change, self._read_counter()  # what changes from now on is read again
        data = os.pread(self._descriptor, self.header.num_slots * ENTRY.itemsize, self._index_offset)
        self.index.update(data, max(since, 0))

    def _drop(self, slot: int) -> None:
        if self.is_writer:
            self.index.give_back(slot)
            self._write(entry_bytes(EMPTY, EMPTY, self.index.tick()), self._entry_offset(slot))
            self._count_change()
        else:
            self.index.forget_slot(slot)

    def _lock(self) -> bool:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _checksum(self, block_hash: bytes, block: memoryview) -> bytes:
        digest = hashlib.sha256(self._digest + block_hash)
        digest.update(block)
        return digest.digest()

    def _entry(self, slot: int) -> bytes:
        """Return the hash and the checksum in an entry."""
        return os.pread(self._descriptor, 64, self._entry_offset(slot))

    def _entry_offset(self, slot: int) -> int:
        return self._index_offset + slot * ENTRY.itemsize

    def _slot_offset(self, slot: int) -> int:
        return self._slots_offset + slot * self._stride

    def _read_counter(self) -> int:
        return int.from_bytes(os.pread(self._descriptor, _COUNTER_BYTES, self._counter_offset), "little")

    def _count_change(self) -> None:
        self._write(self.index.time.to_bytes(_COUNTER_BYTES, "little"), self._counter_offset)

    def _write(self, data: bytes | memoryview, offset: int) -> None:
        num_written = os.pwrite(self._descriptor, data, offset)
        if num_written != len(data):
            raise OSError(f"only {num_written:,} of {len(data):,} bytes were written")


def _sized_header(key: SpillKey, model_path: str, block_bytes: int, num_bytes: int) -> SpillHeader:
    """Return the header of a file of up to num_bytes; raises UnusableSpill if it has no room for a block."""

    def header(num_slots: int) -> SpillHeader:
        return SpillHeader(key=key, model_path=model_path, block_bytes=block_bytes, num_slots=num_slots)

    # The number of slots is in the header: its longest form decides.
    rest = num_bytes - len(encode_spill_header(header(num_bytes))) - 2 * PAGE_BYTES
    num_slots = rest // (pages(block_bytes) + ENTRY.itemsize)
    if num_slots < 1:
        raise UnusableSpill(f"{num_bytes:,} bytes have no room for a block of {block_bytes:,} bytes")
    return header(num_slots)


def _difference(known: SpillHeader | None, wanted: SpillHeader, size: int) -> str:
    """Return in words why a file is not the wanted one."""
    if known is None:
        return "it is new" if not size else "it has no valid header"
    if known.key == wanted.key:
        return "it has another size"
    names = [name for name in known.key.__struct_fields__ if getattr(known.key, name) != getattr(wanted.key, name)]
    if names == ["weights"]:
        one, other = known.key.weights, wanted.key.weights
        names = [name for name in one.__struct_fields__ if getattr(one, name) != getattr(other, name)]
    return f"its blocks were computed with other {', '.join(names)}"


def _open_private(path: Path) -> int:
    """Return a descriptor of a file, created if needed: a regular file of this user that nobody else may access."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o600)
    status = os.fstat(descriptor)
    problem = ownership_problem(status)
    if not problem and status.st_mode & 0o077:
        problem = f"other users can access it (mode {stat.S_IMODE(status.st_mode):o})"
    if problem:
        os.close(descriptor)
        raise UnusableSpill(problem)
    return descriptor


@contextlib.contextmanager
def _closed_on_error(descriptor: int) -> Iterator[None]:
    try:
        yield
    except BaseException:
        os.close(descriptor)
        raise
