"""Kernels of the sampler: from logits [S, vocab_size] to one token a row, without a read by the host.

A row of the vocabulary is worked on in chunks, one program each; `collect` and `pick` have one program a row. Each
number is computed in the order of `caravan.model.sampling.sampler`, so the same logits give the same token:
docs/gpu.md says where a rounding may differ, and how often.

Names of sizes: S rows, V vocab_size, C chunks, B blocks of WIDTH tokens whose weights are summed first, G groups of
GROUP tokens whose greatest weight is known.
"""

import triton
import triton.language as tl

# Rows of the table of numbers, float64 [7, S].
TEMPERATURE = tl.constexpr(0)
TOP_P = tl.constexpr(1)
MIN_P = tl.constexpr(2)
PRESENCE = tl.constexpr(3)
FREQUENCY = tl.constexpr(4)
REPETITION = tl.constexpr(5)
UNIFORM = tl.constexpr(6)
NUM_NUMBERS = 7

# Rows of the table of choices, int32 [6, S].
KIND = tl.constexpr(0)  # SKIPPED, GREEDY or DRAWN
TOP_K = tl.constexpr(1)
SLOT = tl.constexpr(2)  # row of the token history, or -1
IS_ADJUSTED = tl.constexpr(3)  # 1: the row is read from scores, 0: from logits
MASK = tl.constexpr(4)  # row of the masks, or -1
NUM_TOP = tl.constexpr(5)  # top log-probabilities, or -1: none at all
NUM_CHOICES = 6

SKIPPED = tl.constexpr(0)
GREEDY = tl.constexpr(1)
DRAWN = tl.constexpr(2)

GROUP = tl.constexpr(256)
TILE = tl.constexpr(512)  # numbers of a row that a program of one row reads at once
NOWHERE = tl.constexpr(2**31 - 1)  # a place behind every token

LARGEST = tl.constexpr(3.4028234663852886e38)  # of float32
LEAST_EXPONENT = tl.constexpr(-87.0)
LEAST_WEIGHT = tl.constexpr(1.7e-38)
BELOW_ONE = tl.constexpr(0.9999999999999999)
ONE_BITS = tl.constexpr(0x3F800000)  # of the weight 1, which the best token of a row has
HIGHEST_BIT = tl.constexpr(1 << 29)  # of weights in [0, 1]

LOG2_E = tl.constexpr(1.4426950408889634)
LN2_HIGH = tl.constexpr(0.6931471803691238)  # its last 21 bits are zero: a product with a small integer is exact
LN2_LOW = tl.constexpr(1.9082149292705877e-10)


@triton.jit
def exponential(x):
    """Return e**x of float64 x in [-700, 0]: x = k ln 2 + r, and a Taylor polynomial of r, |r| <= ln 2 / 2.

    The error is under 2**-51 of the result; a result rounded to float32 is the nearest number but in about one of
    2**26 cases. Products and sums only, so an interpreter and all GPUs have the same bits.
    """
    k = tl.floor(x * LOG2_E + 0.5)
    r = (x - k * LN2_HIGH) - k * LN2_LOW
    p = r * 1.6059043836821613e-10 + 2.08767569878681e-09  # 1/13!, 1/12!
    p = p * r + 2.505210838544172e-08
    p = p * r + 2.755731922398589e-07
    p = p * r + 2.7557319223985893e-06
    p = p * r + 2.48015873015873e-05
    p = p * r + 0.0001984126984126984
    p = p * r + 0.001388888888888889
    p = p * r + 0.008333333333333333
    p = p * r + 0.041666666666666664
    p = p * r + 0.16666666666666666
    p = p * r + 0.5
    p = p * r + 1.0
    p = p * r + 1.0
    power = ((k.to(tl.int64) + 1023) << 52).to(tl.float64, bitcast=True)
    return p * power


@triton.jit
def load_scores(logits, scores, is_adjusted, places, is_inside):
    """Return scores of a row that penalties, bias or a mask change, else logits; minus infinity outside."""
    plain = tl.load(logits + places, mask=is_inside & (is_adjusted == 0), other=-float("inf"))
    adjusted = tl.load(scores + places, mask=is_inside & (is_adjusted != 0), other=-float("inf"))
    return tl.where(is_adjusted != 0, adjusted, plain)


@triton.jit
def penalize(logits, scores, history, numbers, choices, num_rows, vocab_size, CHUNK: tl.constexpr):
    """Write the scores of adjusted rows: logits after the repetition, presence and frequency penalties."""
    row = tl.program_id(1)
    if tl.load(choices + IS_ADJUSTED * num_rows + row) == 0:
        return
    slot = tl.load(choices + SLOT * num_rows + row)
    tokens = tl.program_id(0) * CHUNK + tl.arange(0, CHUNK)
    is_inside = tokens < vocab_size
    places = row.to(tl.int64) * vocab_size + tokens
    old = tl.load(logits + places, mask=is_inside, other=0.0)
    if slot >= 0:
        seen = tl.load(history + slot.to(tl.int64) * vocab_size + tokens, mask=is_inside, other=0)
        repetition = tl.load(numbers + REPETITION * num_rows + row).to(tl.float32)
        presence = tl.load(numbers + PRESENCE * num_rows + row)
        frequency = tl.load(numbers + FREQUENCY * num_rows + row)
        new = tl.where(old > 0, tl.math.div_rn(old, tl.zeros_like(old) + repetition), old * repetition)
        new = tl.minimum(tl.maximum(new, -LARGEST), LARGEST)
        is_finite = tl.abs(old) <= LARGEST
        new = tl.where((seen > 0) & is_finite, new, old)
        count = seen >> 1
        penalty = (presence + count.to(tl.float64) * frequency).to(tl.float32)
        old = tl.where(count > 0, new - penalty, new)
    tl.store(scores + places, old, mask=is_inside)


@triton.jit
def add_biases(scores, starts, token_ids, values, vocab_size, WIDTH: tl.constexpr):
    """Add the biases starts[row] to starts[row + 1] to scores of their row; minus infinity replaces a score."""
    row = tl.program_id(0)
    start = tl.load(starts + row)
    end = tl.load(starts + row + 1)
    for first in range(start, end, WIDTH):
        entries = first + tl.arange(0, WIDTH)
        is_inside = entries < end
        tokens = tl.load(token_ids + entries, mask=is_inside, other=0)
        bias = tl.load(values + entries, mask=is_inside, other=0.0)
        places = row.to(tl.int64) * vocab_size + tokens
        score = tl.load(scores + places, mask=is_inside, other=0.0)
        tl.store(scores + places, tl.where(bias == -float("inf"), bias, score + bias), mask=is_inside)


@triton.jit
def apply_masks(logits, scores, masks, choices, num_rows, vocab_size, mask_bytes, CHUNK: tl.constexpr):
    """Write the scores of rows with a mask [mask_bytes]: tokens whose bit is 0 get minus infinity."""
    row = tl.program_id(1)
    index = tl.load(choices + MASK * num_rows + row)
    if index < 0:
        return
    octet = tl.program_id(0) * (CHUNK // 8) + tl.arange(0, CHUNK // 8)
    bits = tl.load(masks + index.to(tl.int64) * mask_bytes + octet, mask=octet < mask_bytes, other=0).to(tl.int32)
    bit = tl.arange(0, 8)[None, :]
    tokens = octet[:, None] * 8 + bit
    is_inside = tokens < vocab_size
    places = row.to(tl.int64) * vocab_size + tokens
    score = load_scores(logits, scores, tl.load(choices + IS_ADJUSTED * num_rows + row), places, is_inside)
    is_allowed = ((bits[:, None] >> bit) & 1) == 1
    tl.store(scores + places, score + tl.where(is_allowed, 0.0, -float("inf")), mask=is_inside)


@triton.jit
def find_maxima(logits, scores, maxima, best_ids, choices, num_rows, vocab_size, num_chunks, CHUNK: tl.constexpr):
    """Write the greatest score of each chunk, maxima [S, C], and the first token that has it; NaN if there is one."""
    row = tl.program_id(1)
    chunk = tl.program_id(0)
    if tl.load(choices + KIND * num_rows + row) == SKIPPED:
        return
    is_adjusted = (tl.load(choices + IS_ADJUSTED * num_rows + row) != 0) | (
        tl.load(choices + MASK * num_rows + row) >= 0
    )
    tokens = chunk * CHUNK + tl.arange(0, CHUNK)
    is_inside = tokens < vocab_size
    x = load_scores(logits, scores, is_adjusted.to(tl.int32), row.to(tl.int64) * vocab_size + tokens, is_inside)
    is_nan = x != x
    best = tl.max(tl.where(is_nan, -float("inf"), x), axis=0)
    first = tl.min(tl.where(x == best, tokens, NOWHERE), axis=0)
    has_nan = tl.max(is_nan.to(tl.int32), axis=0) > 0
    tl.store(maxima + row * num_chunks + chunk, tl.where(has_nan, float("nan"), best))
    tl.store(best_ids + row * num_chunks + chunk, first)


@triton.jit
def sum_in_order(x, COUNT: tl.constexpr):
    """Return the sums [N] of x [N, COUNT], one number after the other: adding zeros changes nothing."""
    index = tl.arange(0, COUNT)[None, :]
    total = tl.sum(tl.where(index == 0, x, 0.0), axis=1)
    for place in tl.static_range(1, COUNT):
        total += tl.sum(tl.where(index == place, x, 0.0), axis=1)
    return total


@triton.jit
def block_sums(x, BLOCKS: tl.constexpr, LANES: tl.constexpr):
    """Return the sums [BLOCKS] of x [BLOCKS, LANES] in the order of torch's sum: rows of 8 lanes, then the lanes."""
    if LANES > 8:
        lanes = tl.permute(tl.reshape(x, (BLOCKS, LANES // 8, 8)), (0, 2, 1))
        rows = tl.reshape(sum_in_order(tl.reshape(lanes, (BLOCKS * 8, LANES // 8)), LANES // 8), (BLOCKS, 8))
        total = sum_in_order(rows, 8)
    else:
        total = sum_in_order(x, LANES)
    return total


@triton.jit
def weigh(
    logits,
    scores,
    weights,
    sums,
    group_maxima,
    maxima,
    numbers,
    choices,
    num_rows,
    vocab_size,
    num_chunks,
    num_blocks,
    num_groups,
    block_stride,
    group_stride,
    WIDTH: tl.constexpr,
    CHUNK: tl.constexpr,
    CHUNKS: tl.constexpr,
):
    """Write the weights of drawn rows, [S, V], their sums in blocks, [S, B], and the greatest of groups, [S, G].

    A weight is exp((score - greatest score) / temperature), 0 below the normal numbers. CHUNKS is num_chunks or more.
    """
    row = tl.program_id(1)
    chunk = tl.program_id(0)
    if tl.load(choices + KIND * num_rows + row) != DRAWN:
        return
    LANES: tl.constexpr = 32 if WIDTH > 32 else WIDTH
    BLOCKS: tl.constexpr = CHUNK // WIDTH
    is_adjusted = (tl.load(choices + IS_ADJUSTED * num_rows + row) != 0) | (
        tl.load(choices + MASK * num_rows + row) >= 0
    )
    chunks = tl.arange(0, CHUNKS)
    greatest = tl.max(
        tl.load(maxima + row * num_chunks + chunks, mask=chunks < num_chunks, other=-float("inf")), axis=0
    )
    temperature = tl.load(numbers + TEMPERATURE * num_rows + row).to(tl.float32)
    block = chunk * BLOCKS + tl.arange(0, BLOCKS)
    total = tl.zeros((BLOCKS, LANES), tl.float32)
    peak = tl.zeros((BLOCKS, LANES), tl.float32)
    for step in tl.static_range(WIDTH // LANES):
        tokens = (block * WIDTH)[:, None] + (step * LANES + tl.arange(0, LANES))[None, :]
        is_inside = tokens < vocab_size
        places = row.to(tl.int64) * vocab_size + tokens
        x = load_scores(logits, scores, is_adjusted.to(tl.int32), places, is_inside)
        exponent = tl.math.div_rn(x - greatest, tl.zeros_like(x) + temperature)
        exponent = tl.where(exponent > LEAST_EXPONENT, exponent, LEAST_EXPONENT)  # of NaN, too
        weight = exponential(exponent.to(tl.float64)).to(tl.float32)
        weight = tl.where((weight > LEAST_WEIGHT) & is_inside, weight, 0.0)
        tl.store(weights + places, weight, mask=is_inside)
        total += weight
        peak = tl.maximum(peak, weight)
    tl.store(sums + row * block_stride + block, block_sums(total, BLOCKS, LANES), mask=block < num_blocks)
    groups = tl.max(tl.reshape(peak, (CHUNK // GROUP, BLOCKS * LANES * GROUP // CHUNK)), axis=1)  # [groups of a chunk]
    group = chunk * (CHUNK // GROUP) + tl.arange(0, CHUNK // GROUP)
    tl.store(group_maxima + row * group_stride + group, groups, mask=group < num_groups)
