"""Kernels of the sampler with one program a row: from weights to the tokens that may be drawn, and to the token.

The weights of one row are all in [0, 1], and the greatest is 1. Positive floats have the order of their bits, so the
least weight that top_k or top_p keeps is found digit by digit, from the highest, in NUM_BITS / DIGIT_BITS passes over
the candidates, whatever their weights are. Sums are float64.
"""

import triton
import triton.language as tl

from caravan.model.cuda.sampling_kernels import (
    BELOW_ONE,
    DRAWN,
    GREEDY,
    GROUP,
    HIGHEST_BIT,
    KIND,
    MIN_P,
    NOWHERE,
    ONE_BITS,
    SLOT,
    TILE,
    TOP_K,
    TOP_P,
    UNIFORM,
)

NUM_BITS = tl.constexpr(30)  # of weights: those above are 0 in numbers below 2
DIGIT_BITS = tl.constexpr(3)
NUM_DIGITS = tl.constexpr(8)
SEARCH_TILE = tl.constexpr(1024)  # candidates that a pass reads at once


@triton.jit
def is_truncated(numbers, choices, num_rows, row):
    """Return whether a row is drawn after top_k, top_p or min_p."""
    is_drawn = tl.load(choices + KIND * num_rows + row) == DRAWN
    has_limit = (tl.load(numbers + TOP_P * num_rows + row) < 1.0) | (tl.load(numbers + MIN_P * num_rows + row) > 0.0)
    return is_drawn & (has_limit | (tl.load(choices + TOP_K * num_rows + row) > 0))


@triton.jit
def pairwise_sum(values, starts, lengths, LEAVES: tl.constexpr, LEVELS: tl.constexpr):
    """Return the float32 sum of values in the order of numpy's sum, as float64.

    That order is a tree (pairwise summation): leaves [LEAVES = 2**LEVELS] of up to 128 numbers, each summed in eight
    columns. `starts` and `lengths` come from `caravan.model.cuda.row_table.summation_tree`.
    """
    leaf = tl.arange(0, LEAVES)
    start = tl.load(starts + leaf)
    length = tl.load(lengths + leaf)
    column = tl.arange(0, 8)[None, :]
    columns = tl.zeros((LEAVES, 8), tl.float32)
    for step in range(16):
        is_inside = ((length // 8) > step)[:, None] & (column >= 0)
        columns += tl.load(values + start[:, None] + (step * 8 + column), mask=is_inside, other=0.0)
    pairs = tl.sum(tl.reshape(columns, (LEAVES * 4, 2)), axis=1)
    pairs = tl.sum(tl.reshape(pairs, (LEAVES * 2, 2)), axis=1)
    total = tl.sum(tl.reshape(pairs, (LEAVES, 2)), axis=1)
    rest = length % 8
    for step in range(7):
        total += tl.load(values + start + (length - rest + step), mask=step < rest, other=0.0)
    return sum_tree(total, LEAVES, LEVELS)


@triton.jit
def sum_tree(values, LEAVES: tl.constexpr, LEVELS: tl.constexpr):
    """Return the sum of values [LEAVES]: of neighbours, then of neighbouring sums, and so on, as float64."""
    if LEVELS == 0:
        total = tl.sum(values, axis=0).to(tl.float64)
    else:
        total = sum_tree(tl.sum(tl.reshape(values, (LEAVES // 2, 2)), axis=1), LEAVES // 2, LEVELS - 1)
    return total


@triton.jit
def greatest_bound(values, count, rank):
    """Return the rank-th greatest of values [count], which lie in [0, 1]."""
    bits = tl.full((), 0, tl.int32)
    bit = tl.full((), HIGHEST_BIT, tl.int32)
    while bit > 0:
        trial = bits | bit
        bit >>= 1
        found = tl.full((), 0, tl.int32)
        for start in range(0, count, TILE):
            index = start + tl.arange(0, TILE)
            value = tl.load(values + index, mask=index < count, other=0.0)
            found += tl.sum((value.to(tl.int32, bitcast=True) >= trial).to(tl.int32), axis=0)
        bits = tl.where(found >= rank, trial, bits)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def collect(
    weights,
    sums,
    group_maxima,
    candidates,
    counts,
    masses,
    starts,
    lengths,
    numbers,
    choices,
    num_rows,
    vocab_size,
    num_groups,
    block_stride,
    group_stride,
    LEAVES: tl.constexpr,
    LEVELS: tl.constexpr,
):
    """Write the tokens of truncated rows that may be kept: candidates [S, V] in ascending order, counts [S].

    Each lies above a bound that every kept token exceeds, as in `caravan.model.sampling.truncation`. masses [S] are the
    sums of all weights of rows with top_p.
    """
    row = tl.program_id(0)
    if is_truncated(numbers, choices, num_rows, row) == 0:
        return
    top_k = tl.load(choices + TOP_K * num_rows + row)
    top_p = tl.load(numbers + TOP_P * num_rows + row)
    bound = tl.full((), 0.0, tl.float32)
    if (top_k > 0) & (top_k < vocab_size):
        if top_k <= num_groups:
            bound = greatest_bound(group_maxima + row * group_stride, num_groups, top_k)
    elif top_p < 1.0:
        mass = pairwise_sum(sums + row * block_stride, starts, lengths, LEAVES, LEVELS)
        tl.store(masses + row, mass)
        bound = ((1.0 - top_p) * mass / vocab_size.to(tl.float64)).to(tl.float32)
    else:
        bound = tl.load(numbers + MIN_P * num_rows + row).to(tl.float32)
    first = row.to(tl.int64) * vocab_size
    count = tl.full((), 0, tl.int32)
    for group in range(num_groups):
        peak = tl.load(group_maxima + row * group_stride + group)
        if (peak > 0.0) & (peak >= bound):
            tokens = group * GROUP + tl.arange(0, GROUP)
            weight = tl.load(weights + first + tokens, mask=tokens < vocab_size, other=0.0)
            is_kept = (weight > 0.0) & (weight >= bound)
            place = count + tl.cumsum(is_kept.to(tl.int32), axis=0) - 1
            tl.store(candidates + first + place, tokens, mask=is_kept)
            count += tl.sum(is_kept.to(tl.int32), axis=0)
    tl.store(counts + row, count)


@triton.jit
def load_weights(weights, candidates, start, count, least, IS_LIST: tl.constexpr, SIZE: tl.constexpr = TILE):
    """Return weights [SIZE] from `start` on, of all tokens or of a list of them; 0 behind them and below `least`."""
    index = start + tl.arange(0, SIZE)
    is_inside = index < count
    if IS_LIST:
        index = tl.load(candidates + index, mask=is_inside, other=0)
    weight = tl.load(weights + index, mask=is_inside, other=0.0)
    return tl.where(weight >= least, weight, 0.0)


@triton.jit
def mass_of(weights, candidates, count, least):
    """Return the sum of the candidates' weights that are `least` or more."""
    total = tl.zeros((SEARCH_TILE,), tl.float64)
    for start in range(0, count, SEARCH_TILE):
        total += load_weights(weights, candidates, start, count, least, True, SEARCH_TILE).to(tl.float64)
    return tl.sum(total, axis=0)


@triton.jit
def least_kept(weights, candidates, count, least, wanted, BY_COUNT: tl.constexpr):
    """Return the greatest t such that candidates of weight max(t, least) or more reach `wanted`; 0 if none does.

    They reach their number or the sum of their weights. A pass measures what is kept with each digit that may be next.
    """
    digits = tl.arange(0, NUM_DIGITS)
    bits = tl.full((), 0, tl.int32)
    shift = tl.full((), NUM_BITS, tl.int32)
    while shift > 0:
        shift -= DIGIT_BITS
        trials = bits | (digits << shift)
        totals = tl.zeros((NUM_DIGITS, SEARCH_TILE), tl.float64)
        for start in range(0, count, SEARCH_TILE):
            weight = load_weights(weights, candidates, start, count, least, True, SEARCH_TILE)
            is_kept = weight.to(tl.int32, bitcast=True)[None, :] >= trials[:, None]
            if BY_COUNT:
                weight = (weight > 0.0).to(tl.float32)
            totals += tl.where(is_kept, weight.to(tl.float64)[None, :], 0.0)
        has_reached = (tl.sum(totals, axis=1) >= wanted) & (digits > 0)
        bits |= tl.sum(has_reached.to(tl.int32), axis=0) << shift  # a greater digit keeps less
    return tl.minimum(bits, ONE_BITS).to(tl.float32, bitcast=True)


@triton.jit
def place_of(number, weights, candidates, count, least, IS_LIST: tl.constexpr):
    """Return the index whose interval of the normalized cumulative sum contains `number`, and its place in it."""
    last = tl.arange(0, TILE) == TILE - 1
    total = tl.full((), 0.0, tl.float64)
    for start in range(0, count, TILE):
        weight = load_weights(weights, candidates, start, count, least, IS_LIST).to(tl.float64)
        total += tl.sum(tl.where(last, tl.cumsum(weight, axis=0), 0.0), axis=0)
    target = number * total
    found = tl.full((), NOWHERE, tl.int32)
    before = total - total
    after = total
    carry = total - total
    for start in range(0, count, TILE):
        if found == NOWHERE:
            weight = load_weights(weights, candidates, start, count, least, IS_LIST).to(tl.float64)
            scan = tl.cumsum(weight, axis=0)
            running = carry + scan
            index = start + tl.arange(0, TILE)
            hit = tl.min(tl.where((running > target) & (weight > 0.0), index, NOWHERE), axis=0)
            # Where the sum is whole it ends, so that rounding does not lead past the last weight.
            whole = tl.min(tl.where((running >= total) & (weight > 0.0), index, NOWHERE), axis=0)
            chosen = tl.minimum(hit, whole)
            if chosen < NOWHERE:
                found = chosen
                after = tl.sum(tl.where(index == chosen, running, 0.0), axis=0)
                inner = tl.sum(tl.where(index == chosen - 1, running, 0.0), axis=0)
                before = tl.where(chosen == start, carry, inner)
            carry += tl.sum(tl.where(last, scan, 0.0), axis=0)
    inside = tl.minimum((target - before) / (after - before), BELOW_ONE)
    return found, inside


@triton.jit
def truncate(weights, candidates, counts, masses, least_weights, numbers, choices, num_rows, vocab_size):
    """Write the least weight that top_k, top_p and min_p keep in each truncated row, least_weights [S]."""
    row = tl.program_id(0)
    if is_truncated(numbers, choices, num_rows, row) == 0:
        return
    own = weights + row.to(tl.int64) * vocab_size
    listed = candidates + row.to(tl.int64) * vocab_size
    count = tl.load(counts + row)
    top_k = tl.load(choices + TOP_K * num_rows + row)
    top_p = tl.load(numbers + TOP_P * num_rows + row)
    least = tl.full((), 0.0, tl.float32)
    mass = tl.load(masses + row)
    if (top_k > 0) & (top_k < vocab_size):
        least = least_kept(own, listed, count, 0.0, top_k.to(tl.float64), True)
        mass = mass_of(own, listed, count, least)
    if top_p < 1.0:
        least = tl.maximum(least, least_kept(own, listed, count, least, top_p * mass, False))
    tl.store(least_weights + row, tl.maximum(least, tl.load(numbers + MIN_P * num_rows + row).to(tl.float32)))


@triton.jit
def pick(
    weights,
    sums,
    candidates,
    counts,
    least_weights,
    maxima,
    best_ids,
    tokens,
    numbers,
    choices,
    num_rows,
    vocab_size,
    num_chunks,
    num_blocks,
    block_stride,
    WIDTH: tl.constexpr,
    CHUNKS: tl.constexpr,
):
    """Write the token of each row, tokens [S]: -1 where the greatest score is not finite; skipped rows keep theirs."""
    row = tl.program_id(0)
    kind = tl.load(choices + KIND * num_rows + row)
    chunks = tl.arange(0, CHUNKS)
    is_inside = chunks < num_chunks
    chunk_maxima = tl.load(maxima + row * num_chunks + chunks, mask=is_inside, other=-float("inf"))
    has_nan = tl.max((chunk_maxima != chunk_maxima).to(tl.int32), axis=0) > 0
    greatest = tl.max(tl.where(chunk_maxima != chunk_maxima, -float("inf"), chunk_maxima), axis=0)
    is_sound = (has_nan == 0) & (tl.abs(greatest) < float("inf"))
    if (kind == GREEDY) | ((kind == DRAWN) & (is_sound == 0)):
        first = tl.load(best_ids + row * num_chunks + chunks, mask=is_inside, other=NOWHERE)
        token = tl.min(tl.where(chunk_maxima == greatest, first, NOWHERE), axis=0)
        tl.store(tokens + row, tl.where(is_sound, token, -1))
    if (kind == DRAWN) & is_sound:
        number = tl.load(numbers + UNIFORM * num_rows + row)
        own = weights + row.to(tl.int64) * vocab_size
        if is_truncated(numbers, choices, num_rows, row):
            listed = candidates + row.to(tl.int64) * vocab_size
            least = tl.load(least_weights + row)
            place, _ = place_of(number, own, listed, tl.load(counts + row), least, True)
            token = tl.load(listed + place)
        else:
            block, inside = place_of(number, sums + row * block_stride, candidates, num_blocks, 0.0, False)
            place, _ = place_of(inside, own + block * WIDTH, candidates, WIDTH, 0.0, False)
            token = block * WIDTH + place
        tl.store(tokens + row, token)


@triton.jit
def record_tokens(history, tokens, choices, num_rows, vocab_size, ROWS: tl.constexpr):
    """Count the token of each row in the history of its slot; each row has a slot of its own."""
    row = tl.arange(0, ROWS)
    is_inside = row < num_rows
    token = tl.load(tokens + row, mask=is_inside, other=-1)
    slot = tl.load(choices + SLOT * num_rows + row, mask=is_inside, other=-1)
    is_counted = (token >= 0) & (slot >= 0)
    places = tl.where(is_counted, slot.to(tl.int64) * vocab_size + token, 0)
    seen = tl.load(history + places, mask=is_counted, other=0)
    tl.store(history + places, seen + 2, mask=is_counted)
