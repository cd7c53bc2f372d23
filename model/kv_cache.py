"""KVCache: the pool of blocks that holds the keys and values of every sequence."""

import math
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from caravan.model.config import ModelConfig
from caravan.model.kv_quantization import row_bytes
from caravan.model.prefault import prefault_pages

KVDtype = Literal["auto", "bfloat16", "int8"]
POOL_DTYPES = (torch.float32, torch.bfloat16, torch.int8)


def choose_kv_dtype(choice: KVDtype, dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of the KV cache of a model that computes in dtype; `auto` is the same one.

    int8 has a scale for each key and value of a head. Raises ValueError if the choice contradicts dtype.
    """
    if choice == "int8":
        return torch.int8
    if choice == "bfloat16" and dtype != torch.bfloat16:
        raise ValueError(
            "--kv-cache-dtype bfloat16 cannot be combined with a model computed in float32. "
            "Use auto or int8, or --dtype bfloat16."
        )
    return dtype


def kv_bytes_per_token(config: ModelConfig, dtype: torch.dtype) -> int:
    """Return the bytes of one token in a pool of dtype: a key and a value per layer and KV head."""
    return 2 * config.num_layers * config.num_kv_heads * _row_size(config, dtype) * dtype.itemsize


def check_block_size(block_size: int, multiple: int) -> None:
    """Raise ValueError, in one line, unless a block of that many tokens is a multiple of what attention can read."""
    if block_size % multiple:
        raise ValueError(
            f"A KV cache of this model can have blocks of {multiple}, {2 * multiple}, {3 * multiple}, ... tokens; "
            f"block_size is {block_size}."
        )


class KVCache:
    """Keys and values per layer, each [num_blocks, block_size, num_kv_heads, head_dim].

    In int8 the last dimension is a row of model/kv_quantization.py: the numbers and their scale.

    A token's slot is block * block_size + offset. The scheduler assigns blocks to sequences
    (scheduler/block_manager.py). Slots are not cleared, neither at first nor between sequences: attention reads a
    position only after it was written. The attention that writes and reads a block chooses the order of its numbers.
    Source: PagedAttention (arXiv:2309.06180), section 4.
    """

    def __init__(
        self, config: ModelConfig, num_blocks: int, block_size: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.num_blocks = num_blocks
        self._block_shape = (block_size, config.num_kv_heads, _row_size(config, dtype))
        self._num_layers, self._dtype, self._device = config.num_layers, dtype, device
        self.allocate(num_blocks)

    def allocate(self, num_blocks: int) -> None:
        """Allocate another number of blocks. What was in the pool is lost; `release` it first to have its memory."""
        shape = (num_blocks, *self._block_shape)

        def pool() -> Tensor:
            # A kernel that loads 16 numbers at a time may read past the last one.
            return torch.empty(math.prod(shape) + 32, dtype=self._dtype, device=self._device)[:-32].view(shape)

        self.num_blocks = num_blocks
        self.keys = [pool() for _ in range(self._num_layers)]
        self.values = [pool() for _ in range(self._num_layers)]

    def release(self) -> None:
        """Release the memory of all blocks, before `allocate`."""
        self.keys, self.values = [], []

    def prefault(self, num_bytes: int) -> None:
        """Prefault the memory of the first blocks, num_bytes in all; other threads may use the pool meanwhile."""
        pools = self.keys + self.values
        if pools[0].device.type == "cpu":
            for pool in pools:
                prefault_pages(pool, num_bytes // len(pools))

    def block_rows(self) -> list[NDArray[np.uint8]]:
        """Return the memory of each layer's keys, then values, [num_blocks, bytes of a block], on a CPU."""
        pools = [pool for layer in zip(self.keys, self.values, strict=True) for pool in layer]
        return [pool.view(pool.shape[0], -1).view(torch.uint8).numpy() for pool in pools]

    def copy_block(self, source: int, target: int) -> None:
        """Copy the keys and values of a block."""
        for pool in self.keys + self.values:
            pool[target] = pool[source]

    def clear_block(self, block: int) -> None:
        """Overwrite the keys and values of a block, which may hold NaN, with zeros."""
        for pool in self.keys + self.values:
            pool[block] = 0

    @property
    def num_bytes(self) -> int:
        """Size of the whole pool in bytes."""
        return sum(pool.nbytes for pool in self.keys + self.values)


def _row_size(config: ModelConfig, dtype: torch.dtype) -> int:
    """Return the size of a key or a value of one head, in numbers of dtype."""
    return row_bytes(config.head_dim) if dtype == torch.int8 else config.head_dim
