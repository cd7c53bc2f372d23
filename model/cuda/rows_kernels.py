"""What a layer computes row by row, in Triton: residual and norm, the norm of single heads, SwiGLU.

A program computes a whole row, so its bits depend on that row alone. The order of a sum over a row follows from its
width, which decides on the number of warps.
"""

import triton
import triton.language as tl


@triton.jit
def normalized(x, weight, eps, WIDTH: tl.constexpr):
    """Return x [N] in float32, zero beyond WIDTH, with root mean square one, times the weight [N] of its dtype.

    Rounded to the weight's dtype before the product and after it, as in model.rms_norm.RMSNorm (arXiv:1910.07467,
    equation 4).
    """
    mean_square = tl.sum(x * x, 0) / WIDTH
    unit = (x * tl.rsqrt(mean_square + eps)).to(weight.dtype)
    return (unit.to(tl.float32) * weight.to(tl.float32)).to(weight.dtype)


@triton.jit
def add_and_normalize(
    residual,  # [T, WIDTH]
    added,  # [T, WIDTH], where HAS_ADDED
    weight,  # [WIDTH]
    total,  # [T, WIDTH], output where HAS_ADDED: residual + added
    output,  # [T, WIDTH]: total, normalized
    eps,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    HAS_ADDED: tl.constexpr,
):
    """Add to a row of the residual stream and normalize it. Grid: T."""
    places = tl.arange(0, BLOCK)
    mask = places < WIDTH
    row = tl.program_id(0).to(tl.int64) * WIDTH
    x = tl.load(residual + row + places, mask=mask, other=0)
    if HAS_ADDED:
        more = tl.load(added + row + places, mask=mask, other=0)
        x = (x.to(tl.float32) + more.to(tl.float32)).to(x.dtype)
        tl.store(total + row + places, x, mask=mask)
    factors = tl.load(weight + places, mask=mask, other=0)
    tl.store(output + row + places, normalized(x.to(tl.float32), factors, eps, WIDTH), mask=mask)


@triton.jit
def normalize_heads(
    qkv,  # [T, heads, HEAD_DIM], rows qkv_stride apart; changed in place
    query_weight,  # [HEAD_DIM]
    key_weight,
    qkv_stride,
    eps,
    NUM_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM: tl.constexpr,
):
    """Normalize a query or a key head, as Qwen3 does before rotation. Grid: T, NUM_HEADS + number of KV heads."""
    head = tl.program_id(1)
    dims = tl.arange(0, DIM)
    mask = dims < HEAD_DIM
    place = qkv + tl.program_id(0).to(tl.int64) * qkv_stride + head * HEAD_DIM + dims
    weights = query_weight if head < NUM_HEADS else key_weight
    factors = tl.load(weights + dims, mask=mask, other=0)
    x = tl.load(place, mask=mask, other=0).to(tl.float32)
    tl.store(place, normalized(x, factors, eps, HEAD_DIM), mask=mask)


@triton.jit
def gate(
    gate_up,  # [T, 2 * width]: gates, then what they let through
    output,  # [T, width]
    width,
    BLOCK: tl.constexpr,
):
    """Compute SwiGLU's silu(gate) * up for BLOCK numbers of a row (arXiv:2002.05202). Grid: T, ceil(width / BLOCK)."""
    places = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = places < width
    row = tl.program_id(0).to(tl.int64) * width
    gates = tl.load(gate_up + 2 * row + places, mask=mask, other=0)
    up = tl.load(gate_up + 2 * row + width + places, mask=mask, other=0)
    wide = gates.to(tl.float32)
    silu = (wide / (1.0 + tl.exp(-wide))).to(gates.dtype)
    tl.store(output + row + places, (silu.to(tl.float32) * up.to(tl.float32)).to(gates.dtype), mask=mask)
