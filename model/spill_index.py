"""SpillIndex: which slot of a spill file holds which block, the least recently used first.

An entry is the hash of a block, the checksum of its slot and the time of its last use, which is a counter. Entries are
not checked themselves: a wrong hash or checksum does not fit the bytes of the slot, and a wrong time only changes the
order in which slots are used again.
"""

from collections import OrderedDict

import numpy as np
from numpy.typing import NDArray

ENTRY = np.dtype([("block_hash", "V32"), ("checksum", "V32"), ("used", "<u8")])
EMPTY = bytes(32)  # the hash in an entry without a block
_MAX_TIME = 2**62  # a later one is damaged


def entry_bytes(block_hash: bytes, checksum: bytes, used: int) -> bytes:
    """Return an entry."""
    return block_hash + checksum + used.to_bytes(8, "little")


class SpillIndex:
    """The entries of a spill file, in memory."""

    def __init__(self, num_slots: int) -> None:
        self._slots: OrderedDict[bytes, int] = OrderedDict()
        self._hashes: list[bytes | None] = [None] * num_slots
        self._free: list[int] = [*range(num_slots - 1, -1, -1)]  # used from the end; only the writer needs it
        self.time = 0  # of the last use

    def __contains__(self, block_hash: object) -> bool:
        """Whether a slot has the block; another thread may ask."""
        return block_hash in self._slots

    def __len__(self) -> int:
        return len(self._slots)

    def slot_of(self, block_hash: bytes) -> int | None:
        """Return the slot of a block, or None."""
        return self._slots.get(block_hash)

    def tick(self) -> int:
        """Return the time of a use that happens now."""
        self.time += 1
        return self.time

    def touch(self, block_hash: bytes) -> None:
        """Record that a block was used."""
        self._slots.move_to_end(block_hash)

    def put(self, block_hash: bytes, slot: int) -> None:
        """Record that a slot has a block from now on, used last."""
        self.forget_slot(slot)
        former = self._slots.pop(block_hash, None)
        if former is not None:
            self._hashes[former] = None
        self._slots[block_hash] = slot
        self._hashes[slot] = block_hash

    def forget_slot(self, slot: int) -> None:
        """Record that a slot has no block."""
        block_hash = self._hashes[slot]
        if block_hash is not None:
            self._hashes[slot] = None
            del self._slots[block_hash]

    def take_slot(self) -> int:
        """Return a slot for another block: one that is free, or else the least recently used one."""
        while self._free:
            slot = self._free.pop()
            if self._hashes[slot] is None:
                return slot
        return self._slots[next(iter(self._slots))]

    def give_back(self, slot: int) -> None:
        """Record that a slot is free."""
        self.forget_slot(slot)
        self._free.append(slot)

    def update(self, data: bytes, since: int = 0) -> None:
        """Take over the entries in the index of the file that were used after the time `since`; 0: all."""
        count = min(len(data) // ENTRY.itemsize, len(self._hashes))
        entries: NDArray[np.void] = np.frombuffer(data, ENTRY, count=count)
        times = np.where(entries["used"] < _MAX_TIME, entries["used"], 0).astype(np.int64)
        changed = np.flatnonzero(times > since) if since else np.arange(count)
        for slot in changed[np.argsort(times[changed], kind="stable")].tolist():
            block_hash = entries["block_hash"][slot].tobytes()
            if block_hash == EMPTY:
                self.forget_slot(slot)
            else:
                self.put(block_hash, slot)
        self.time = max(self.time, int(times.max(initial=0)))
