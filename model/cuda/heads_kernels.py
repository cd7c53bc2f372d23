"""Query, key and value heads in Triton: rotation, and writing into the pool. A program takes HEADS heads of a token."""

import triton
import triton.language as tl

HEADS = 8
NUM_WARPS = 4


@triton.jit
def rounded_to_bytes(x):
    """Return x [HEADS, DIM] in float32 as int8, and the scales [HEADS]: multiples of a largest magnitude / 127.

    Ties go to even, a NaN makes the scale NaN. Bytes are those of model/kv_quantization.py.
    """
    is_nan = x != x
    largest = tl.max(tl.where(is_nan, 0.0, tl.abs(x)), 1)
    largest = tl.where(tl.max(is_nan.to(tl.int32), 1) > 0, float("nan"), largest)
    # torch computes 127 / largest as 1 / largest * 127; zeros stay zeros, whatever they are multiplied by.
    inverse = tl.div_rn(1.0, tl.where(largest == 0, 1.0, largest)) * 127.0
    magic = 12582912.0  # 1.5 * 2 ** 23: adding it rounds a small number to an integer
    scaled = x * inverse[:, None]
    rounded = (scaled + magic) - magic
    return tl.where(rounded == rounded, rounded, 0.0).to(tl.int8), tl.div_rn(largest, 127.0)


@triton.jit
def store_rows(
    x,  # [HEADS, DIM] float32, zero beyond HEAD_DIM
    pool,  # [num_blocks, block_size, num_kv_heads, ROW_SIZE]
    pool_scales,  # the same memory in float32, where the pool has 8 bits
    rows,  # [HEADS] int64, slot * num_kv_heads + KV head
    is_row,  # [HEADS]
    HEAD_DIM: tl.constexpr,
    DIM: tl.constexpr,
    ROW_SIZE: tl.constexpr,
    IS_INT8: tl.constexpr,
):
    """Store heads as rows of the pool."""
    dims = tl.arange(0, DIM)
    place = rows[:, None] * ROW_SIZE + dims[None, :]
    mask = is_row[:, None] & (dims < HEAD_DIM)[None, :]
    if IS_INT8:
        numbers, scales = rounded_to_bytes(x)
        tl.store(pool + place, numbers, mask=mask)
        if ROW_SIZE - 4 > HEAD_DIM:
            padding = HEAD_DIM + tl.arange(0, 4)
            padding_mask = is_row[:, None] & (padding < ROW_SIZE - 4)[None, :]
            tl.store(pool + rows[:, None] * ROW_SIZE + padding[None, :], 0, mask=padding_mask)
        tl.store(pool_scales + rows * (ROW_SIZE // 4) + (ROW_SIZE // 4 - 1), scales, mask=is_row)
    else:
        tl.store(pool + place, x.to(pool.dtype.element_ty), mask=mask)


@triton.jit
def rotate_and_write(
    qkv,  # [T, NUM_HEADS + 2 * NUM_KV_HEADS, HEAD_DIM], tokens qkv_stride apart
    cos_table,  # [max_position, HEAD_DIM / 2] float32
    sin_table,
    positions,  # [T] int64
    slots,  # [T] int64
    queries,  # [T, NUM_HEADS, HEAD_DIM], output
    keys,  # [num_blocks, block_size, NUM_KV_HEADS, ROW_SIZE]
    values,
    key_scales,  # the same memory in float32, where the pool has 8 bits
    value_scales,
    qkv_stride,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM: tl.constexpr,
    HEADS: tl.constexpr,
    ROW_SIZE: tl.constexpr,
    IS_INT8: tl.constexpr,
):
    """Rotate queries; rotate keys and store them; store values. Grid: T, ceil(all heads / HEADS).

    Dimension i is paired with i + HEAD_DIM / 2, as in model/rope.py. A token with slot -1 pads a batch: nothing of it
    is stored.
    """
    token = tl.program_id(0).to(tl.int64)
    heads = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    dims = tl.arange(0, DIM)
    half: tl.constexpr = HEAD_DIM // 2
    is_low = dims < half
    is_dim = dims < HEAD_DIM
    mask = (heads < NUM_HEADS + 2 * NUM_KV_HEADS)[:, None] & is_dim[None, :]
    source = qkv + token * qkv_stride + heads[:, None] * HEAD_DIM
    own = tl.load(source + dims[None, :], mask=mask, other=0)
    others = tl.load(source + tl.where(is_low, dims + half, dims - half)[None, :], mask=mask, other=0)
    angle = tl.load(positions + token) * half + tl.where(is_low, dims, dims - half)
    cos = tl.load(cos_table + angle, mask=is_dim, other=0)
    sin = tl.load(sin_table + angle, mask=is_dim, other=0)
    wide = own.to(tl.float32)
    turned = wide * cos[None, :] + others.to(tl.float32) * tl.where(is_low, -sin, sin)[None, :]
    turned = turned.to(own.dtype)
    is_query = heads < NUM_HEADS
    place = (token * NUM_HEADS + heads)[:, None] * HEAD_DIM + dims[None, :]
    tl.store(queries + place, turned, mask=is_query[:, None] & is_dim[None, :])
    slot = tl.load(slots + token)
    if slot < 0:
        return
    kv_heads = heads - NUM_HEADS
    is_key = (kv_heads >= 0) & (kv_heads < NUM_KV_HEADS)
    is_value = (kv_heads >= NUM_KV_HEADS) & (kv_heads < 2 * NUM_KV_HEADS)
    rows = slot * NUM_KV_HEADS + kv_heads
    store_rows(turned.to(tl.float32), keys, key_scales, rows, is_key, HEAD_DIM, DIM, ROW_SIZE, IS_INT8)
    store_rows(wide, values, value_scales, rows - NUM_KV_HEADS, is_value, HEAD_DIM, DIM, ROW_SIZE, IS_INT8)


@triton.jit
def write_heads_kernel(
    keys,  # [T, NUM_KV_HEADS, HEAD_DIM], tokens key_stride apart
    values,
    slots,  # [T] int64
    key_cache,
    value_cache,
    key_scales,
    value_scales,
    key_stride,
    value_stride,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM: tl.constexpr,
    HEADS: tl.constexpr,
    ROW_SIZE: tl.constexpr,
    IS_INT8: tl.constexpr,
):
    """Store keys and values as they are. Grid: T, ceil(NUM_KV_HEADS / HEADS)."""
    token = tl.program_id(0).to(tl.int64)
    heads = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    slot = tl.load(slots + token)
    if slot < 0:
        return
    dims = tl.arange(0, DIM)
    is_row = heads < NUM_KV_HEADS
    mask = is_row[:, None] & (dims < HEAD_DIM)[None, :]
    place = heads[:, None] * HEAD_DIM + dims[None, :]
    key = tl.load(keys + token * key_stride + place, mask=mask, other=0).to(tl.float32)
    value = tl.load(values + token * value_stride + place, mask=mask, other=0).to(tl.float32)
    rows = slot * NUM_KV_HEADS + heads
    store_rows(key, key_cache, key_scales, rows, is_row, HEAD_DIM, DIM, ROW_SIZE, IS_INT8)
    store_rows(value, value_cache, value_scales, rows, is_row, HEAD_DIM, DIM, ROW_SIZE, IS_INT8)
