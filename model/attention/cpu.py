"""Paged attention by a C++ kernel that reads the pages where they lie."""

from typing import Any

from torch import Tensor

from caravan.model.forward_batch import ForwardBatch

BLOCK_MULTIPLE = 16  # tokens that lie side by side in a page
NO_WINDOW = 1 << 40  # more positions than there are


class CpuAttention:
    """The contract is model.attention.PagedAttention; the order inside a page is described in model/cpu/pages.h.

    Blocks must be of a multiple of 16 tokens; keys, values and queries of one dtype, bfloat16 or float32. In bfloat16
    the softmax's weights are rounded before they meet the values; all sums are float32. In a pool of int8 queries and
    weights are multiplied in 15 bits, and the sums of a head, or of 256 tokens, are of whole numbers and exact.
    """

    def __init__(self, kernels: Any) -> None:
        self._kernels = kernels

    def write(self, keys: Tensor, values: Tensor, key_cache: Tensor, value_cache: Tensor, slot_mapping: Tensor) -> None:
        """Store keys and values, each [T, num_kv_heads, head_dim], at the slots [T]."""
        self._kernels.write(keys, values, slot_mapping, key_cache, value_cache)

    def __call__(
        self, queries: Tensor, key_cache: Tensor, value_cache: Tensor, batch: ForwardBatch, window: int | None = None
    ) -> Tensor:
        """Return the attention of every query over its own sequence, shape [T, num_heads, head_dim]."""
        output: Tensor = self._kernels.attend(
            queries,
            key_cache,
            value_cache,
            batch.query_start_loc,
            batch.seq_lens,
            batch.block_tables,
            window or NO_WINDOW,
        )
        return output
