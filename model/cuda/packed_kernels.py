"""Matrix products in Triton with weights of few bits, in the order of model/cuda/product_kernels.py.

A step of inputs is unpacked in registers: each weight becomes the number that it has in float32, is rounded once to the
dtype of x, and takes part in one matrix instruction as a weight in that dtype would.

Numbers below 2^11 are the bits of small float16: n is n / 2^24. So two of them are taken out of a word at once, and
become float32 as any float16 does; the scale has the factor 2^24. All of that is exact.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from caravan.model.cuda.packed_layouts import FEW_ROWS, MANY_OUTPUTS
from caravan.model.cuda.shared_memory import shared_memory_bytes

THREE_STAGES_BYTES = 136 * 1024  # of shared memory, at most, that the largest tile takes; two stages take two thirds

_UNIT = tl.constexpr(2.0**24)
_WORD_INPUTS = tl.constexpr(64)  # whose scales are a word, where there are factors
_FACTOR_INPUTS = tl.constexpr(256)  # that share a factor


class PackedTile(NamedTuple):
    """The tile of a program and how it is run."""

    rows: int
    columns: int
    inputs: int  # of a step
    has_weights_first: bool  # the weights are the left operand of the matrix instruction, which has them in registers
    num_warps: int
    num_stages: int  # of loads; it changes no sum


def packed_tile(num_rows: int, num_columns: int, bytes_per_number: int, device: torch.device) -> PackedTile:
    """Return the tile for x with this number of rows and a weight with this number of outputs.

    A left operand has at least 64 rows, so up to 64 rows of x it depends on the outputs: weights come first where their
    tiles are enough for all processors. float32, for tests, has one tile. The largest tile has fewer stages on a device
    with little shared memory.
    """
    if bytes_per_number == 4:
        return PackedTile(64, 32, 128, False, 4, 2)
    if num_rows <= FEW_ROWS and num_columns >= MANY_OUTPUTS:
        return PackedTile(16, 64, 128, True, 4, 5)
    if num_rows <= 64:
        return PackedTile(64, 32, 128, False, 4, 4)
    if num_rows <= 512:
        return PackedTile(128, 64, 64, True, 4, 4)
    return PackedTile(128, 128, 128, True, 8, 3 if shared_memory_bytes(device) >= THREE_STAGES_BYTES else 2)


@triton.jit
def half_float(words):
    """Return the float16 in the low half of words [...] int32, in float32."""
    return words.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def whole_numbers(words, FIRST: tl.constexpr, BITS: tl.constexpr, COUNT: tl.constexpr):
    """Return COUNT numbers, 2 or 4, of words [C, W] int32 from bit FIRST on, [C, W * COUNT] float32, by 2^-24."""
    MASK: tl.constexpr = (1 << BITS) - 1
    first = half_float((words >> FIRST) & MASK)
    second = half_float((words >> (FIRST + BITS)) & MASK)
    if COUNT == 2:
        found = tl.join(first, second)
    else:
        third = half_float((words >> (FIRST + 2 * BITS)) & MASK)
        fourth = half_float((words >> (FIRST + 3 * BITS)) & MASK)
        found = tl.join(tl.join(first, third), tl.join(second, fourth))
    return found.reshape(words.shape[0], words.shape[1] * COUNT)


@triton.jit
def repeated(parts, COUNT: tl.constexpr):
    """Return parts [C, G], each number COUNT times, [C, G * COUNT]."""
    shape: tl.constexpr = [parts.shape[0], parts.shape[1], COUNT]
    return tl.broadcast_to(parts[:, :, None], shape).reshape(shape[0], shape[1] * COUNT)


@triton.jit
def weight_pairs(
    words, FIRST: tl.constexpr, BITS: tl.constexpr, scale, offset, ZERO: tl.constexpr, IS_WIDE: tl.constexpr
):
    """Return the weights [C, W, 2] whose numbers stand from bits FIRST and FIRST + 16 on in words [C, W].

    scale and offset [C, W] are for numbers by 2^-24; IS_WIDE: the scale is for whole numbers, and has their zero.
    """
    pair = (words >> FIRST) & (0x00010001 * ((1 << BITS) - 1))
    low = half_float(pair)
    high = half_float(pair >> 16)
    if IS_WIDE:
        unit = tl.full(low.shape, _UNIT, tl.float32)
        zero = tl.full(low.shape, -ZERO, tl.float32)
        low = tl.fma(low, unit, zero) * scale
        high = tl.fma(high, unit, zero) * scale
    else:
        low = tl.fma(low, scale, offset)
        high = tl.fma(high, scale, offset)
    return tl.join(low, high)


@triton.jit(do_not_specialize=["num_rows"])
def multiply_packed(
    x,  # [M, K], rows x_stride apart
    numbers,  # [N, words] int32, as model/cuda/packed_layouts.py says
    scales,  # [N, groups] in a floating-point dtype; HAS_OFFSETS or HAS_FACTORS: int32, with the offsets
    factors,  # [N, ceil(K / 256)] int32, where HAS_FACTORS
    bias,  # [N], where HAS_BIAS
    output,  # [M, N], rows output_stride apart
    num_rows,
    num_columns,
    num_inputs,
    x_stride,
    number_stride,
    scale_stride,
    factor_stride,
    output_stride,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    STEP: tl.constexpr,
    HAS_WEIGHTS_FIRST: tl.constexpr,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    ZERO: tl.constexpr,
    SCALE_BITS: tl.constexpr,
    SCALE_ZERO: tl.constexpr,
    HAS_OFFSETS: tl.constexpr,
    HAS_FACTORS: tl.constexpr,
    IS_WIDE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_TAIL: tl.constexpr,
):
    """Compute x @ weight.T + bias, where a weight is rounded to x's dtype. Grid: ceil(M / ROWS), ceil(N / COLUMNS).

    A product of a scale and a number is exact in float32, so that a fused product and sum rounds as two would.
    IS_WIDE: scales have the range of float32. HAS_TAIL: K is no multiple of STEP; scales beyond K are zeros.
    """
    GROUPS: tl.constexpr = STEP // GROUP
    WORDS: tl.constexpr = STEP * BITS // 32
    SCALES: tl.constexpr = STEP // _WORD_INPUTS if HAS_FACTORS else GROUPS
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inputs = tl.arange(0, STEP)
    wrapped = (columns % num_columns).to(tl.int64)
    x_rows = x + (rows % num_rows).to(tl.int64)[:, None] * x_stride + inputs[None, :]
    number_rows = numbers + wrapped[:, None] * number_stride + tl.arange(0, WORDS)[None, :]
    scale_rows = scales + wrapped[:, None] * scale_stride + tl.arange(0, SCALES)[None, :]
    factor_rows = factors + wrapped[:, None] * factor_stride
    total = tl.zeros([COLUMNS, ROWS] if HAS_WEIGHTS_FIRST else [ROWS, COLUMNS], tl.float32)
    for step in range(0, (num_inputs + STEP - 1) // STEP):
        if HAS_TAIL:
            x_tile = tl.load(x_rows + step * STEP, mask=(step * STEP + inputs < num_inputs)[None, :], other=0)
        else:
            x_tile = tl.load(x_rows + step * STEP)  # [ROWS, STEP]
        words = tl.load(number_rows + step * WORDS)  # [COLUMNS, WORDS]
        scale_words = tl.load(scale_rows + step * SCALES)  # [COLUMNS, SCALES]
        if HAS_FACTORS:
            pairs = tl.load(factor_rows + step * STEP // _FACTOR_INPUTS)  # [COLUMNS, 1]
            factor = tl.broadcast_to(half_float(pairs) * (_UNIT * _UNIT), [COLUMNS, GROUPS])
            scale = whole_numbers(scale_words, 0, SCALE_BITS, GROUPS // SCALES)
            if HAS_OFFSETS:
                scale = scale * factor
                offset = whole_numbers(scale_words, 16, SCALE_BITS, GROUPS // SCALES)
                offset = offset * (half_float(pairs >> 16) * _UNIT)
            else:
                scale = tl.fma(scale, factor, factor * (-SCALE_ZERO / _UNIT))
        elif HAS_OFFSETS:
            scale = half_float(scale_words) * _UNIT  # [COLUMNS, GROUPS]
            offset = half_float(scale_words >> 16)
        elif IS_WIDE:
            scale = scale_words.to(tl.float32)
        else:
            scale = scale_words.to(tl.float32) * _UNIT
        if not HAS_OFFSETS:
            offset = scale * (-ZERO / _UNIT)
        if BITS == 4:
            if GROUP == 16:  # 32 inputs are in each word of a lane
                low_scale, high_scale = tl.split(scale.reshape(COLUMNS, GROUPS // 2, 2))
                low_offset, high_offset = tl.split(offset.reshape(COLUMNS, GROUPS // 2, 2))
                low_scale = repeated(low_scale, 4)  # [COLUMNS, WORDS]
                high_scale = repeated(high_scale, 4)
                low_offset = repeated(low_offset, 4)
                high_offset = repeated(high_offset, 4)
            else:
                low_scale = repeated(scale, GROUP // 8)
                low_offset = repeated(offset, GROUP // 8)
                high_scale = low_scale
                high_offset = low_offset
            first = weight_pairs(words, 0, BITS, low_scale, low_offset, ZERO, IS_WIDE)
            second = weight_pairs(words, 4, BITS, low_scale, low_offset, ZERO, IS_WIDE)
            third = weight_pairs(words, 8, BITS, high_scale, high_offset, ZERO, IS_WIDE)
            fourth = weight_pairs(words, 12, BITS, high_scale, high_offset, ZERO, IS_WIDE)
            weights = tl.join(tl.join(first, third), tl.join(second, fourth))  # [COLUMNS, WORDS, 2, 2, 2]
        else:
            scale = repeated(scale, GROUP // 4)  # [COLUMNS, WORDS]
            offset = repeated(offset, GROUP // 4)
            first = weight_pairs(words, 0, BITS, scale, offset, ZERO, IS_WIDE)
            second = weight_pairs(words, 8, BITS, scale, offset, ZERO, IS_WIDE)
            weights = tl.join(first, second)  # [COLUMNS, WORDS, 2, 2]
        # Words of a part, lanes, the two of a pair, pairs: pairs come before lanes.
        weights = weights.to(x.dtype.element_ty).reshape(COLUMNS, STEP * BITS // 128, 4, 2, 16 // BITS)
        weights = weights.permute(0, 1, 4, 2, 3).reshape(COLUMNS, STEP)
        if HAS_WEIGHTS_FIRST:
            total = tl.dot(weights, tl.trans(x_tile), total, input_precision="ieee")
        else:
            total = tl.dot(x_tile, tl.trans(weights), total, input_precision="ieee")
    if HAS_WEIGHTS_FIRST:
        total = tl.trans(total)
    if HAS_BIAS:
        total += tl.load(bias + columns, mask=columns < num_columns, other=0).to(tl.float32)[None, :]
    place = output + rows.to(tl.int64)[:, None] * output_stride + columns[None, :]
    mask = (rows < num_rows)[:, None] & (columns < num_columns)[None, :]
    tl.store(place, total.to(output.dtype.element_ty), mask=mask)
