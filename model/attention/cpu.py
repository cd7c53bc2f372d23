"""Paged attention by a C++ kernel that reads the pages in place."""

from torch import Tensor

from caravan.model.cpu.kernels import Kernels
from caravan.model.forward_batch import ForwardBatch

BLOCK_MULTIPLE = 16  # tokens that are stored side by side in a page
NO_WINDOW = 1 << 40  # more positions than any context has
NO_CAP = 0.0


class CpuAttention:
    """Implements model.attention.PagedAttention; model/cpu/pages.h describes the order of numbers inside a page.

    The block size must be a multiple of 16 tokens; keys, values and queries have one dtype, bfloat16 or float32. In
    bfloat16 the softmax's weights are rounded before they are multiplied by the values; all sums are float32. With a
    pool of int8, queries and weights are multiplied in 15 bits, and the sums of a head, or of 256 tokens, are integers
    and exact.
    """

    block_multiple = BLOCK_MULTIPLE

    def __init__(self, kernels: Kernels) -> None:
        self.kernels = kernels

    def write(self, keys: Tensor, values: Tensor, key_cache: Tensor, value_cache: Tensor, slot_mapping: Tensor) -> None:
        """Store keys and values, each [T, num_kv_heads, head_dim], at the slots [T]."""
        self.kernels.write(keys, values, slot_mapping, key_cache, value_cache)

    def __call__(
        self,
        queries: Tensor,
        key_cache: Tensor,
        value_cache: Tensor,
        batch: ForwardBatch,
        window: int | None = None,
        soft_cap: float | None = None,
        sinks: Tensor | None = None,
    ) -> Tensor:
        """Return the attention of every query over its own sequence, shape [T, num_heads, head_dim]."""
        assert sinks is None, "the kernel has none (ModelConfig.parts_without_kernels)"
        return self.kernels.attend(
            queries,
            key_cache,
            value_cache,
            batch.query_start_loc,
            batch.seq_lens,
            batch.block_tables,
            window or NO_WINDOW,
            soft_cap or NO_CAP,
        )
