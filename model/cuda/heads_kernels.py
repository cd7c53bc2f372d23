"""Query, key and value heads in Triton: rotation and writing into the pool, and the norms of Qwen3's heads."""

import triton
import triton.language as tl


@triton.jit
def rounded_to_bytes(x):
    """Return x [N] in float32 as int8, and its scale: multiples of the largest magnitude / 127, ties to even.

    A NaN makes the scale NaN. Bytes are those of model/kv_quantization.py.
    """
    is_nan = x != x
    largest = tl.max(tl.where(is_nan, 0.0, tl.abs(x)), 0)
    largest = tl.where(tl.max(is_nan.to(tl.int32), 0) > 0, float("nan"), largest)
    inverse = tl.where(largest == 0, 0.0, tl.div_rn(1.0, largest) * 127.0)  # as torch computes 127 / largest
    magic = 12582912.0  # 1.5 * 2 ** 23: adding it rounds a small number to an integer
    scaled = x * inverse
    rounded = (scaled + magic) - magic
    return tl.where(rounded == rounded, rounded, 0.0).to(tl.int8), tl.div_rn(largest, 127.0)


@triton.jit
def store_row(x, pool, pool_scales, row, dims, HEAD_DIM: tl.constexpr, ROW_SIZE: tl.constexpr, IS_INT8: tl.constexpr):
    """Store x [DIM], in float32, as a row of the pool. `dims` are the places of its numbers."""
    if IS_INT8:
        numbers, scale = rounded_to_bytes(x)
        tl.store(pool + row * ROW_SIZE + dims, numbers, mask=dims < HEAD_DIM)
        padding = HEAD_DIM + tl.arange(0, 4)
        tl.store(pool + row * ROW_SIZE + padding, tl.zeros([4], tl.int8), mask=padding < ROW_SIZE - 4)
        tl.store(pool_scales + row * (ROW_SIZE // 4) + (ROW_SIZE // 4 - 1), scale)
    else:
        tl.store(pool + row * ROW_SIZE + dims, x.to(pool.dtype.element_ty), mask=dims < HEAD_DIM)


@triton.jit
def rotate_and_write(
    qkv,  # [T, NUM_HEADS + 2 * NUM_KV_HEADS, HEAD_DIM], rows qkv_stride apart
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
    ROW_SIZE: tl.constexpr,
    IS_INT8: tl.constexpr,
):
    """Rotate a query head, or rotate a key head and store it, or store a value head. Grid: T, all heads.

    Dimension i is paired with i + HEAD_DIM / 2, as in model/rope.py. A token with slot -1 pads a batch: nothing of it
    is stored.
    """
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    dims = tl.arange(0, DIM)
    is_dim = dims < HEAD_DIM
    source = qkv + token * qkv_stride + head * HEAD_DIM
    own = tl.load(source + dims, mask=is_dim, other=0)
    wide = own.to(tl.float32)
    if head < NUM_HEADS + NUM_KV_HEADS:
        half = HEAD_DIM // 2
        is_low = dims < half
        pair = tl.where(is_low, dims, dims - half)
        position = tl.load(positions + token)
        cos = tl.load(cos_table + position * half + pair, mask=is_dim, other=0)
        sin = tl.load(sin_table + position * half + pair, mask=is_dim, other=0)
        other = tl.load(source + tl.where(is_low, dims + half, dims - half), mask=is_dim, other=0).to(tl.float32)
        turned = wide * cos + other * tl.where(is_low, -sin, sin)
        wide = turned.to(own.dtype).to(tl.float32)
    if head < NUM_HEADS:
        tl.store(queries + (token * NUM_HEADS + head) * HEAD_DIM + dims, wide.to(queries.dtype.element_ty), mask=is_dim)
        return
    slot = tl.load(slots + token)
    if slot < 0:
        return
    if head < NUM_HEADS + NUM_KV_HEADS:
        store_row(wide, keys, key_scales, slot * NUM_KV_HEADS + head - NUM_HEADS, dims, HEAD_DIM, ROW_SIZE, IS_INT8)
    else:
        row = slot * NUM_KV_HEADS + head - NUM_HEADS - NUM_KV_HEADS
        store_row(wide, values, value_scales, row, dims, HEAD_DIM, ROW_SIZE, IS_INT8)


@triton.jit
def write_heads_kernel(
    keys,  # [T, NUM_KV_HEADS, HEAD_DIM], rows key_stride apart
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
    ROW_SIZE: tl.constexpr,
    IS_INT8: tl.constexpr,
):
    """Store a key head and a value head as they are. Grid: T, NUM_KV_HEADS."""
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    slot = tl.load(slots + token)
    if slot < 0:
        return
    dims = tl.arange(0, DIM)
    key = tl.load(keys + token * key_stride + head * HEAD_DIM + dims, mask=dims < HEAD_DIM, other=0)
    value = tl.load(values + token * value_stride + head * HEAD_DIM + dims, mask=dims < HEAD_DIM, other=0)
    row = slot * NUM_KV_HEADS + head
    store_row(key.to(tl.float32), key_cache, key_scales, row, dims, HEAD_DIM, ROW_SIZE, IS_INT8)
    store_row(value.to(tl.float32), value_cache, value_scales, row, dims, HEAD_DIM, ROW_SIZE, IS_INT8)
