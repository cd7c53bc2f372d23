"""KVCache: the pool of blocks that holds the keys and values of every sequence."""

import math

import torch
from torch import Tensor

from model.config import ModelConfig


def kv_bytes_per_token(config: ModelConfig, bytes_per_value: int) -> int:
    """Return what one token costs in the pool: a key and a value per layer and KV head."""
    return 2 * config.num_layers * config.num_kv_heads * config.head_dim * bytes_per_value


class KVCache:
    """Keys and values per layer, each [num_blocks, block_size, num_kv_heads, head_dim].

    A token's slot is block * block_size + offset. Which block belongs to which sequence is the scheduler's
    business (scheduler/block_pool.py); here are only numbers. Slots are not cleared, neither at first nor between
    sequences: attention reads a position only after it was written. In which order the numbers of a block lie is up to
    the attention that writes and reads them.
    Source: PagedAttention (arXiv:2309.06180), section 4.
    """

    def __init__(
        self, config: ModelConfig, num_blocks: int, block_size: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        shape = (num_blocks, block_size, config.num_kv_heads, config.head_dim)

        def pool() -> Tensor:
            # A kernel that loads 16 numbers at a time may look behind the last one.
            return torch.empty(math.prod(shape) + 32, dtype=dtype, device=device)[:-32].view(shape)

        self.keys = [pool() for _ in range(config.num_layers)]
        self.values = [pool() for _ in range(config.num_layers)]

    @property
    def num_bytes(self) -> int:
        """Size of the whole pool in bytes."""
        return sum(pool.nbytes for pool in self.keys + self.values)
