"""Arena: large chunks of memory in which weights are stored one after another."""

import torch
from torch import Tensor

CHUNK_BYTES = 64 * 1024 * 1024
ALIGNMENT_BYTES = 64  # a cache line


class Arena:
    """Allocates weights in chunks of 64 MB, large enough for huge pages, which are read a sixth faster or more.

    torch asks for huge pages where it allocates at least 2 MB, if THP_MEM_ALLOC_ENABLE is set.
    """

    def __init__(self) -> None:
        self._chunk = torch.empty(0, dtype=torch.uint8)
        self._used = 0

    def allocate(self, weight: Tensor) -> Tensor:
        """Return a copy of `weight`, a flat uint8 tensor, in the arena."""
        return self.empty(weight.numel()).copy_(weight)

    def empty(self, num_bytes: int) -> Tensor:
        """Return memory in the arena, [num_bytes] uint8, not set."""
        if self._used + num_bytes > self._chunk.numel():
            self._chunk = torch.empty(max(CHUNK_BYTES, num_bytes), dtype=torch.uint8)
            self._used = 0
        memory = self._chunk[self._used : self._used + num_bytes]
        self._used += -(-num_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
        return memory
