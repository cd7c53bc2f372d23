"""Heads: queries, keys and values between the first product of a layer and its attention."""

import torch
from torch import Tensor

from caravan.model.cuda.heads_kernels import HEADS, NUM_WARPS, rotate_and_write, write_heads_kernel


def padded_dim(head_dim: int) -> int:
    """Return the width of a tile of heads: a power of two, at least 16, which a matrix instruction needs."""
    return max(16, 1 << (head_dim - 1).bit_length())


def scale_views(keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the pools as float32, where a row in 8 bits ends with its scale; other pools as they are."""
    if keys.dtype == torch.int8:
        return keys.view(torch.float32), values.view(torch.float32)
    return keys, values


def rotated_queries(
    qkv: Tensor,
    rope: tuple[Tensor, Tensor],
    positions: Tensor,
    slot_mapping: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
) -> Tensor:
    """Return the rotated queries [T, num_heads, head_dim]; store the rotated keys, and the values, in the pool.

    qkv is [T, num_heads + 2 num_kv_heads, head_dim], contiguous; `rope` the tables of cosines and sines, each
    [max_position, head_dim / 2] in float32. Tokens with slot -1 are not stored.
    """
    num_tokens, num_rows, head_dim = qkv.shape
    num_kv_heads, row_size = key_cache.shape[2:]
    num_heads = num_rows - 2 * num_kv_heads
    queries = torch.empty(num_tokens, num_heads, head_dim, dtype=qkv.dtype, device=qkv.device)
    rotate_and_write[(num_tokens, -(-num_rows // HEADS))](
        qkv,
        *rope,
        positions,
        slot_mapping,
        queries,
        key_cache,
        value_cache,
        *scale_views(key_cache, value_cache),
        qkv.stride(0),
        NUM_HEADS=num_heads,
        NUM_KV_HEADS=num_kv_heads,
        HEAD_DIM=head_dim,
        DIM=padded_dim(head_dim),
        HEADS=HEADS,
        ROW_SIZE=row_size,
        IS_INT8=key_cache.dtype == torch.int8,
        num_warps=NUM_WARPS,
        enable_fp_fusion=False,
    )
    return queries


def write_heads(keys: Tensor, values: Tensor, key_cache: Tensor, value_cache: Tensor, slot_mapping: Tensor) -> None:
    """Store keys and values, each [T, num_kv_heads, head_dim], at the slots [T]; a slot of -1 is skipped."""
    num_tokens, num_kv_heads, head_dim = keys.shape
    assert keys.stride()[1:] == values.stride()[1:] == (head_dim, 1)
    write_heads_kernel[(num_tokens, -(-num_kv_heads // HEADS))](
        keys,
        values,
        slot_mapping,
        key_cache,
        value_cache,
        *scale_views(key_cache, value_cache),
        keys.stride(0),
        values.stride(0),
        NUM_KV_HEADS=num_kv_heads,
        HEAD_DIM=head_dim,
        DIM=padded_dim(head_dim),
        HEADS=HEADS,
        ROW_SIZE=key_cache.shape[3],
        IS_INT8=key_cache.dtype == torch.int8,
        num_warps=NUM_WARPS,
        enable_fp_fusion=False,
    )
