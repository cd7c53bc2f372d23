"""Arena: large pieces of memory that weights lie in one behind the other."""

import torch
from torch import Tensor

CHUNK_BYTES = 64 * 1024 * 1024
ALIGNMENT_BYTES = 64  # a cache line


class Arena:
    """Weights one by one would be too small for huge pages, which raise the speed of reading by a sixth and more.

    torch asks for huge pages where it allocates at least 2 MB, if THP_MEM_ALLOC_ENABLE is set.
    """

    def __init__(self) -> None:
        self._chunk = torch.empty(0, dtype=torch.uint8)
        self._used = 0

    def keep(self, weight: Tensor) -> Tensor:
        """Return a copy of the bytes of `weight` that lies here; it must be a flat uint8 tensor."""
        num_bytes = weight.numel()
        if self._used + num_bytes > self._chunk.numel():
            self._chunk = torch.empty(max(CHUNK_BYTES, num_bytes), dtype=torch.uint8)
            self._used = 0
        kept = self._chunk[self._used : self._used + num_bytes]
        self._used += -(-num_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
        return kept.copy_(weight)
