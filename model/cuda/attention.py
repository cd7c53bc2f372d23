"""Paged attention on a GPU, by the kernels of model/cuda/attention_kernels.py."""

import math
from typing import Any

import torch
from torch import Tensor

from caravan.model.cuda.attention_kernels import (
    DECODE_ROWS,
    SPLIT_TOKENS,
    TILE,
    attend_chunk,
    decode_splits,
    merge_splits,
    tile_shape,
)
from caravan.model.cuda.heads import padded_dim, scale_views, write_heads
from caravan.model.forward_batch import ForwardBatch

NO_WINDOW = 1 << 30  # more positions than any context has


class CudaAttention:
    """Implements model.attention.PagedAttention with kernels; nothing is read back to the host.

    Sequences with one query are computed in splits of 512 positions, each by a program of its own; those with more in
    tiles of 16 or 32 rows, by the same sums in the same order. So a row has the same bits in both kernels, whatever
    shares its batch. In bfloat16 the softmax's weights are rounded before they are multiplied by the values; all sums
    are float32. Numbers of 8 bits are multiplied in the queries' dtype, then scores and weights by their scales.
    """

    block_multiple = 1

    def write(self, keys: Tensor, values: Tensor, key_cache: Tensor, value_cache: Tensor, slot_mapping: Tensor) -> None:
        """Store keys and values, each [T, num_kv_heads, head_dim], at the slots [T]; a slot of -1 is skipped."""
        write_heads(keys, values, key_cache, value_cache, slot_mapping)

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
        """Return the attention of every query over its own sequence, shape [T, num_heads, head_dim].

        The numbers of a head of the queries, and its heads, are contiguous. A sequence with one query and seq_len 0
        pads a batch; its row is zeros.
        """
        assert soft_cap is None, "no kernel has it (ModelConfig.parts_without_gpu)"
        assert sinks is None, "no kernel has them"
        num_tokens, num_heads, head_dim = queries.shape
        assert queries.stride()[1:] == (head_dim, 1)
        num_seqs = batch.seq_lens.shape[0]
        output = torch.empty(num_tokens, num_heads, head_dim, dtype=queries.dtype, device=queries.device)
        if num_tokens > num_seqs:
            self._attend_chunks(queries, key_cache, value_cache, batch, window or NO_WINDOW, output)
        if num_seqs > 1 or num_tokens == 1:
            self._decode(queries, key_cache, value_cache, batch, window or NO_WINDOW, output)
        return output

    def _attend_chunks(
        self, queries: Tensor, keys: Tensor, values: Tensor, batch: ForwardBatch, window: int, output: Tensor
    ) -> None:
        """Write the rows of the sequences with several queries."""
        num_tokens, num_heads, head_dim = queries.shape
        num_kv_heads = keys.shape[2]
        num_seqs, group = batch.seq_lens.shape[0], num_heads // num_kv_heads
        shape = tile_shape(head_dim, keys.itemsize)
        attend_chunk[(num_tokens * group // shape.chunk_rows + num_seqs, num_kv_heads)](
            queries,
            keys,
            values,
            *scale_views(keys, values),
            batch.query_start_loc,
            batch.seq_lens,
            batch.block_tables,
            output,
            queries.stride(0),
            batch.block_tables.stride(0),
            num_seqs,
            window,
            _score_scale(head_dim),
            ROWS=shape.chunk_rows,
            **_pair_options(queries, keys),
        )

    def _decode(
        self, queries: Tensor, keys: Tensor, values: Tensor, batch: ForwardBatch, window: int, output: Tensor
    ) -> None:
        """Write the rows of the sequences with one query.

        The sums of the splits take num_seqs * num_heads * num_splits * (head_dim + 2) * 4 bytes.
        """
        _, num_heads, head_dim = queries.shape
        _, block_size, num_kv_heads, _ = keys.shape
        num_seqs, group = batch.seq_lens.shape[0], num_heads // num_kv_heads
        num_splits = math.ceil(batch.block_tables.shape[1] * block_size / SPLIT_TOKENS)
        count = -(-num_seqs * num_heads * num_splits // 4) * 4  # each part starts at a multiple of 16 bytes
        sums = torch.empty(count * (head_dim + 2), dtype=torch.float32, device=queries.device)
        mixed, tops, totals = torch.split(sums, [count * head_dim, count, count])
        decode_splits[(num_seqs, num_kv_heads * math.ceil(group / DECODE_ROWS), num_splits)](
            queries,
            keys,
            values,
            *scale_views(keys, values),
            batch.query_start_loc,
            batch.seq_lens,
            batch.block_tables,
            tops,
            totals,
            mixed,
            queries.stride(0),
            batch.block_tables.stride(0),
            num_splits,
            window,
            _score_scale(head_dim),
            ROWS=DECODE_ROWS,
            **_pair_options(queries, keys),
        )
        merge_splits[(num_seqs, num_heads)](
            tops,
            totals,
            mixed,
            batch.query_start_loc,
            batch.seq_lens,
            output,
            num_splits,
            window,
            HEAD_DIM=head_dim,
            DIM=padded_dim(head_dim),
            SPLIT=SPLIT_TOKENS,
            num_warps=1,
            enable_fp_fusion=False,
        )


def _score_scale(head_dim: int) -> float:
    """Return the factor of scores whose exponential is a power of two."""
    return math.log2(math.e) / math.sqrt(head_dim)


def _pair_options(queries: Tensor, keys: Tensor) -> dict[str, Any]:
    """Return what both kernels of the pair must have alike, or a row would have other bits in a chunk."""
    _, num_heads, head_dim = queries.shape
    _, block_size, num_kv_heads, row_size = keys.shape
    shape = tile_shape(head_dim, keys.itemsize)
    return {
        "GROUP": num_heads // num_kv_heads,
        "HEAD_DIM": head_dim,
        "DIM": padded_dim(head_dim),
        "SPLIT": SPLIT_TOKENS,
        "TILE": TILE,
        "BLOCK_SIZE": block_size,
        "NUM_KV_HEADS": num_kv_heads,
        "ROW_SIZE": row_size,
        "IS_INT8": keys.dtype == torch.int8,
        "num_warps": shape.num_warps,
        "num_stages": shape.num_stages,
        "enable_fp_fusion": False,
    }
