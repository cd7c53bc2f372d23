"""Staging: how the numbers of a step get to a device, in one copy."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

NUM_BUFFERS = 2  # a step is staged while the one before it may still be copied
ALIGNMENT = 16  # bytes: kernels read that many at once
DTYPES: Mapping[np.dtype[Any], torch.dtype] = MappingProxyType(
    {
        np.dtype(np.int32): torch.int32,
        np.dtype(np.int64): torch.int64,
        np.dtype(np.float32): torch.float32,
        np.dtype(np.float64): torch.float64,
    }
)

Array = NDArray[np.int32] | NDArray[np.int64] | NDArray[np.float32] | NDArray[np.float64]


class Part(NamedTuple):
    """Where an array lies among those that are staged together."""

    start: int  # in bytes, a multiple of ALIGNMENT
    num_bytes: int
    dtype: torch.dtype


class StagedArrays(NamedTuple):
    """Arrays end to end in memory of the host."""

    content: Tensor  # uint8 [bytes]
    parts: list[Part]


class Staging:
    """Buffers of host memory, pinned for a GPU, that take turns, and one of the device to which they are copied."""

    def __init__(self, num_bytes: int, device: torch.device) -> None:
        """Allocate room for num_bytes bytes; more are staged in memory that is allocated for them."""
        self._device = device
        self._buffers = [self._buffer(num_bytes) for _ in range(NUM_BUFFERS)]
        self.memory = torch.zeros(num_bytes, dtype=torch.uint8, device=device)

    def stage(self, arrays: Sequence[Array]) -> StagedArrays:
        """Return a copy of arrays, which is overwritten in the call after the next."""
        parts: list[Part] = []
        end = 0
        for array in arrays:
            parts.append(Part(end, array.nbytes, DTYPES[array.dtype]))
            end += -(-array.nbytes // ALIGNMENT) * ALIGNMENT
        self._buffers.append(self._buffers.pop(0))
        if end > self._buffers[0].shape[0]:
            self._buffers[0] = self._buffer(1 << end.bit_length())
        content = self._buffers[0][:end]
        memory = content.numpy()
        for array, part in zip(arrays, parts, strict=True):
            memory[part.start : part.start + part.num_bytes].view(array.dtype)[:] = array.ravel()
        return StagedArrays(content, parts)

    def copy(self, staged: StagedArrays) -> list[Tensor]:
        """Start to copy arrays to the device and return them there, each with one dimension, until the next call.

        The first one, as far as it fits, is always at the start of `memory`. On a GPU this waits for nothing.
        """
        num_bytes = staged.content.shape[0]
        memory = self.memory
        if num_bytes > memory.shape[0]:
            memory = torch.empty(num_bytes, dtype=torch.uint8, device=self._device)
        memory[:num_bytes].copy_(staged.content, non_blocking=True)
        if memory is not self.memory:
            num_first = min(staged.parts[0].num_bytes, self.memory.shape[0])
            self.memory[:num_first].copy_(memory[:num_first])
        return [memory.narrow(0, start, size).view(dtype) for start, size, dtype in staged.parts]

    def _buffer(self, num_bytes: int) -> Tensor:
        return torch.empty(num_bytes, dtype=torch.uint8, pin_memory=self._device.type == "cuda")
