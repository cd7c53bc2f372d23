"""Paged attention in Triton: a kernel for rows that decode, one for chunks of prefill, and the sum that both share.

Fixed, for equal bits: a split of SPLIT_TOKENS positions, computed in tiles of TILE positions; the splits of a row are
merged in order of position. Tiles and splits start at multiples of their size. Tiles of DECODE_ROWS rows and of a
TileShape's rows have, with the same number of warps, one matrix-instruction layout on sm_80, sm_90 and sm_100. Row sums
are matrix products with ones, so that the only reductions are maxima, which have no order. Numbers that differ between
steps are not specialized, so that one binary computes all batches.

A row of a tile is a query head of a token: row r of sequence b and KV head h is the token r // GROUP of the sequence's
queries, head h * GROUP + r % GROUP.

Source: FlashAttention-2 (arXiv:2307.08691), section 3.1; splits as in Flash-Decoding.
"""

from typing import NamedTuple

import triton
import triton.language as tl

SPLIT_TOKENS = 512
TILE = 64
DECODE_ROWS = 16


class TileShape(NamedTuple):
    """How a chunk is divided, and how both kernels of the pair are run."""

    chunk_rows: int
    num_warps: int
    num_stages: int  # of loads; it changes no sum


def tile_shape(head_dim: int, bytes_per_number: int) -> TileShape:
    """Return the shape for a pool whose numbers have 1, 2 or 4 bytes.

    Chosen so that nothing spills with heads of 64, 96, 128 and 256 in bfloat16 and 8 bits: rows in 8 bits are copied by
    4 bytes, which takes a pointer for each. In float32, for tests, heads of 256 have one stage, or they would need more
    shared memory than an RTX 4090 has.
    """
    if bytes_per_number == 1:
        return TileShape(16, 8, 2 if 64 < head_dim <= 128 else 1)
    if bytes_per_number == 2 and head_dim <= 128:
        return TileShape(32, 8 if 32 < head_dim <= 64 else 4, 2)
    return TileShape(16, 8, 1 if bytes_per_number == 4 and head_dim > 128 else 2)


@triton.jit
def split_sums(
    queries,  # [ROWS, DIM]
    positions,  # [ROWS] int32; a row at -1 sees nothing
    first,  # the positions that some row sees, inside one split
    end,
    keys,  # [num_blocks, BLOCK_SIZE, NUM_KV_HEADS, ROW_SIZE]
    values,
    key_scales,  # the same memory in float32, where the pool has 8 bits
    value_scales,
    table,  # [blocks of the sequence] int32
    kv_head,
    window,
    scale,  # log2(e) / sqrt(head_dim)
    HEAD_DIM: tl.constexpr,
    DIM: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    ROW_SIZE: tl.constexpr,
    IS_INT8: tl.constexpr,
):
    """Return the largest score [ROWS], the sum of weights [ROWS, 16] in equal columns, and the weighted values."""
    top = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS, 16], tl.float32)
    mixed = tl.zeros([ROWS, DIM], tl.float32)
    ones = tl.full([TILE, 16], 1.0, tl.float32).to(queries.dtype)
    dims = tl.arange(0, DIM)
    for start in range(first // TILE * TILE, end, TILE):
        at = start + tl.arange(0, TILE)
        is_inside = (at >= first) & (at < end)  # other slots may hold NaN
        block = tl.load(table + at // BLOCK_SIZE, mask=is_inside, other=0).to(tl.int64)
        slot_row = (block * BLOCK_SIZE + at % BLOCK_SIZE) * NUM_KV_HEADS + kv_head  # [TILE]
        offsets = slot_row[:, None] * ROW_SIZE + dims[None, :]
        mask = is_inside[:, None] & (dims < HEAD_DIM)[None, :]
        tile_keys = tl.load(keys + offsets, mask=mask, other=0).to(queries.dtype)  # [TILE, DIM]
        scores = tl.dot(queries, tl.trans(tile_keys), input_precision="ieee") * scale  # [ROWS, TILE]
        if IS_INT8:
            scale_at = slot_row * (ROW_SIZE // 4) + (ROW_SIZE // 4 - 1)
            scores = scores * tl.load(key_scales + scale_at, mask=is_inside, other=0)[None, :]
        distance = positions[:, None] - at[None, :]
        scores = tl.where((distance >= 0) & (distance < window) & is_inside[None, :], scores, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, 1))
        base = tl.where(new_top == float("-inf"), 0.0, new_top)
        weights = tl.exp2(scores - base[:, None])
        shrink = tl.exp2(top - base)
        top = new_top
        total = tl.dot(weights.to(queries.dtype), ones, total * shrink[:, None], input_precision="ieee")
        if IS_INT8:
            weights = weights * tl.load(value_scales + scale_at, mask=is_inside, other=0)[None, :]
        tile_values = tl.load(values + offsets, mask=mask, other=0).to(queries.dtype)  # [TILE, DIM]
        mixed = tl.dot(weights.to(queries.dtype), tile_values, mixed * shrink[:, None], input_precision="ieee")
    return top, total, mixed


@triton.jit
def merge_factors(top, split_top):
    """Return the larger maximum and the factors of the sums so far and of the next split."""
    new_top = tl.maximum(top, split_top)
    base = tl.where(new_top == float("-inf"), 0.0, new_top)
    return new_top, tl.exp2(top - base), tl.exp2(split_top - base)


@triton.jit(do_not_specialize=["table_stride", "num_splits", "window"])
def decode_splits(
    queries,  # [T, NUM_KV_HEADS * GROUP, HEAD_DIM], rows query_stride apart
    keys,
    values,
    key_scales,
    value_scales,
    query_start_loc,  # [B + 1] int32
    seq_lens,  # [B] int32
    block_tables,  # [B, table_stride] int32
    tops,  # [B, heads, num_splits] float32, outputs
    totals,  # [B, heads, num_splits]
    mixed_values,  # [B, heads, num_splits, HEAD_DIM]
    query_stride,
    table_stride,
    num_splits,
    window,
    scale,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM: tl.constexpr,
    ROWS: tl.constexpr,
    SPLIT: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    ROW_SIZE: tl.constexpr,
    IS_INT8: tl.constexpr,
):
    """Compute one split of one sequence with a single query, for ROWS heads of a KV head.

    Grid: B, NUM_KV_HEADS * ceil(GROUP / ROWS), num_splits. Splits outside a sequence and its window are not written.
    """
    b = tl.program_id(0)
    kv_head = tl.program_id(1) // ((GROUP + ROWS - 1) // ROWS)
    row_tile = tl.program_id(1) % ((GROUP + ROWS - 1) // ROWS)
    split = tl.program_id(2)
    token = tl.load(query_start_loc + b)
    num_queries = tl.load(query_start_loc + b + 1) - token
    seq_len = tl.load(seq_lens + b)
    first = tl.maximum(tl.maximum(seq_len - window, 0), split * SPLIT)
    end = tl.minimum(seq_len, (split + 1) * SPLIT)
    if (num_queries != 1) | (first >= end):
        return
    rows = row_tile * ROWS + tl.arange(0, ROWS)
    dims = tl.arange(0, DIM)
    mask = (rows < GROUP)[:, None] & (dims < HEAD_DIM)[None, :]
    heads = kv_head * GROUP + rows
    tile = tl.load(queries + token * query_stride + heads[:, None] * HEAD_DIM + dims[None, :], mask=mask, other=0)
    top, total, mixed = split_sums(
        tile,
        tl.where(rows < GROUP, seq_len - 1, -1),
        first,
        end,
        keys,
        values,
        key_scales,
        value_scales,
        block_tables + b * table_stride,
        kv_head,
        window,
        scale,
        HEAD_DIM,
        DIM,
        ROWS,
        TILE,
        BLOCK_SIZE,
        NUM_KV_HEADS,
        ROW_SIZE,
        IS_INT8,
    )
    at = ((b * NUM_KV_HEADS * GROUP + heads) * num_splits + split).to(tl.int64)
    tl.store(tops + at, top, mask=rows < GROUP)
    tl.store(totals + at, tl.max(total, 1), mask=rows < GROUP)
    tl.store(mixed_values + at[:, None] * HEAD_DIM + dims[None, :], mixed, mask=mask)


@triton.jit(do_not_specialize=["num_splits", "window"])
def merge_splits(
    tops,
    totals,
    mixed_values,
    query_start_loc,
    seq_lens,
    output,  # [T, heads, HEAD_DIM]
    num_splits,
    window,
    HEAD_DIM: tl.constexpr,
    DIM: tl.constexpr,
    SPLIT: tl.constexpr,
):
    """Merge the splits of one head of a sequence with a single query, in order. Grid: B, heads.

    A sequence of length 0, which pads a batch, gets zeros.
    """
    b = tl.program_id(0)
    head = tl.program_id(1)
    num_heads = tl.num_programs(1)
    token = tl.load(query_start_loc + b)
    if tl.load(query_start_loc + b + 1) - token != 1:
        return
    seq_len = tl.load(seq_lens + b)
    dims = tl.arange(0, DIM)
    top = tl.full([DIM], float("-inf"), tl.float32)  # every number of it equal
    total = tl.zeros([DIM], tl.float32)
    mixed = tl.zeros([DIM], tl.float32)
    for split in range(tl.maximum(seq_len - window, 0) // SPLIT, (seq_len + SPLIT - 1) // SPLIT):
        at = ((b * num_heads + head) * num_splits + split).to(tl.int64)
        top, old_factor, new_factor = merge_factors(top, tl.load(tops + at))
        total = total * old_factor + tl.load(totals + at) * new_factor
        split_mixed = tl.load(mixed_values + at * HEAD_DIM + dims, mask=dims < HEAD_DIM, other=0)
        mixed = mixed * old_factor + split_mixed * new_factor
    mixed = mixed / tl.where(seq_len == 0, 1.0, total)
    place = (token * num_heads + head).to(tl.int64) * HEAD_DIM
    tl.store(output + place + dims, mixed.to(output.dtype.element_ty), mask=dims < HEAD_DIM)


@triton.jit(do_not_specialize=["table_stride", "num_seqs", "window"])
def attend_chunk(
    queries,  # [T, NUM_KV_HEADS * GROUP, HEAD_DIM], rows query_stride apart
    keys,
    values,
    key_scales,
    value_scales,
    query_start_loc,  # [B + 1] int32
    seq_lens,  # [B] int32
    block_tables,  # [B, table_stride] int32
    output,  # [T, NUM_KV_HEADS * GROUP, HEAD_DIM]
    query_stride,
    table_stride,
    num_seqs,
    window,
    scale,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM: tl.constexpr,
    ROWS: tl.constexpr,
    SPLIT: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    ROW_SIZE: tl.constexpr,
    IS_INT8: tl.constexpr,
):
    """Compute ROWS rows of a KV head, of one sequence with several queries.

    Grid: T * GROUP // ROWS + B, NUM_KV_HEADS. The tiles of sequence b start at program
    query_start_loc[b] * GROUP // ROWS + b, which leaves room for a partial tile of each sequence; a program finds its
    sequence by bisection, so that the host need not know the lengths.
    """
    program = tl.program_id(0)
    kv_head = tl.program_id(1)
    b = 0
    beyond = num_seqs
    while beyond - b > 1:
        middle = (b + beyond) // 2
        is_later = tl.load(query_start_loc + middle) * GROUP // ROWS + middle <= program
        b = tl.where(is_later, middle, b)
        beyond = tl.where(is_later, beyond, middle)
    token = tl.load(query_start_loc + b)
    num_queries = tl.load(query_start_loc + b + 1) - token
    first_row = (program - (token * GROUP // ROWS + b)) * ROWS
    if (num_queries <= 1) | (first_row >= num_queries * GROUP):
        return
    before = tl.load(seq_lens + b) - num_queries  # tokens before the first query
    rows = first_row + tl.arange(0, ROWS)
    has_query = rows < num_queries * GROUP
    dims = tl.arange(0, DIM)
    mask = has_query[:, None] & (dims < HEAD_DIM)[None, :]
    heads = kv_head * GROUP + rows % GROUP
    query_rows = (token + rows // GROUP).to(tl.int64)
    tile = tl.load(
        queries + query_rows[:, None] * query_stride + heads[:, None] * HEAD_DIM + dims[None, :], mask=mask, other=0
    )
    lowest = tl.maximum(before + first_row // GROUP + 1 - window, 0)
    end = before + tl.minimum(first_row + ROWS - 1, num_queries * GROUP - 1) // GROUP + 1
    top = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS, 16], tl.float32)
    mixed = tl.zeros([ROWS, DIM], tl.float32)
    for split in range(lowest // SPLIT, (end + SPLIT - 1) // SPLIT):
        split_top, split_total, split_mixed = split_sums(
            tile,
            tl.where(has_query, before + rows // GROUP, -1),
            tl.maximum(lowest, split * SPLIT),
            tl.minimum(end, (split + 1) * SPLIT),
            keys,
            values,
            key_scales,
            value_scales,
            block_tables + b * table_stride,
            kv_head,
            window,
            scale,
            HEAD_DIM,
            DIM,
            ROWS,
            TILE,
            BLOCK_SIZE,
            NUM_KV_HEADS,
            ROW_SIZE,
            IS_INT8,
        )
        top, old_factor, new_factor = merge_factors(top, split_top)
        total = total * old_factor[:, None] + split_total * new_factor[:, None]
        mixed = mixed * old_factor[:, None] + split_mixed * new_factor[:, None]
    mixed = mixed / tl.where(has_query, tl.max(total, 1), 1.0)[:, None]
    place = (query_rows * (NUM_KV_HEADS * GROUP) + heads) * HEAD_DIM
    tl.store(output + place[:, None] + dims[None, :], mixed.to(output.dtype.element_ty), mask=mask)
