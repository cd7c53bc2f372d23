"""Kernels for log-probabilities of the chosen token and of the most probable ones, under the model itself.

They read logits [S, V], before penalties and temperature. Of tokens with equal logits the first counts as better.
"""

import triton
import triton.language as tl

from caravan.model.cuda.sampling_kernels import NOWHERE, NUM_TOP, exponential


@triton.jit
def exponential_sum(x, greatest):
    """Return the float64 sum of exp(x - greatest) over x [N], float32."""
    difference = x.to(tl.float64) - greatest.to(tl.float64)
    weight = exponential(tl.where(difference > -700.0, difference, -700.0))
    return tl.sum(tl.where(difference > -700.0, weight, 0.0), axis=0)


@triton.jit
def find_top(logits, top_logits, top_ids, sums, choices, num_rows, vocab_size, num_chunks, width, CHUNK: tl.constexpr):
    """Write the best logits of each chunk, [S, C, width] with their tokens, and its sum of exp(logit - best), [S, C].

    `width` is 1 or more: the best logit is needed by the sum.
    """
    row = tl.program_id(1)
    chunk = tl.program_id(0)
    wanted = tl.load(choices + NUM_TOP * num_rows + row)
    if wanted < 0:
        return
    tokens = chunk * CHUNK + tl.arange(0, CHUNK)
    x = tl.load(logits + row.to(tl.int64) * vocab_size + tokens, mask=tokens < vocab_size, other=-float("inf"))
    tl.store(sums + row * num_chunks + chunk, exponential_sum(x, tl.max(x, axis=0)))
    out = (row * num_chunks + chunk) * width
    is_left = tokens < vocab_size
    for rank in range(tl.maximum(wanted, 1)):
        best = tl.max(tl.where(is_left, x, -float("inf")), axis=0)
        first = tl.min(tl.where(is_left & (x == best), tokens, NOWHERE), axis=0)
        tl.store(top_logits + out + rank, best)
        tl.store(top_ids + out + rank, first)
        is_left = is_left & (tokens != first)


@triton.jit
def find_logprobs(
    logits,
    tokens,
    top_logits,
    top_ids,
    sums,
    logprobs,
    best_logprobs,
    best_ids,
    choices,
    num_rows,
    vocab_size,
    num_chunks,
    width,
    CHUNKS: tl.constexpr,
    PLACES: tl.constexpr,
):
    """Write the log-probability of each row's token, [S], and those of its best tokens, [S, width], best first.

    CHUNKS is num_chunks or more, PLACES num_chunks * width or more.
    """
    row = tl.program_id(0)
    wanted = tl.load(choices + NUM_TOP * num_rows + row)
    token = tl.load(tokens + row)
    if (wanted < 0) | (token < 0):
        return
    chunks = tl.arange(0, CHUNKS)
    is_inside = chunks < num_chunks
    chunk_best = tl.load(top_logits + (row * num_chunks + chunks) * width, mask=is_inside, other=-float("inf"))
    chunk_sum = tl.load(sums + row * num_chunks + chunks, mask=is_inside, other=0.0)
    greatest = tl.max(chunk_best, axis=0).to(tl.float64)
    difference = chunk_best.to(tl.float64) - greatest
    scale = exponential(tl.where(difference > -700.0, difference, -700.0))
    total = tl.sum(tl.where(difference > -700.0, chunk_sum * scale, 0.0), axis=0)
    norm = greatest + tl.log(total)
    logit = tl.load(logits + row.to(tl.int64) * vocab_size + token)
    tl.store(logprobs + row, (logit.to(tl.float64) - norm).to(tl.float32))
    places = tl.arange(0, PLACES)
    is_left = (places < num_chunks * width) & (places % width < wanted)
    x = tl.load(top_logits + row * num_chunks * width + places, mask=is_left, other=-float("inf"))
    ids = tl.load(top_ids + row * num_chunks * width + places, mask=is_left, other=NOWHERE)
    is_left = is_left & (ids < NOWHERE)
    for rank in range(wanted):
        best = tl.max(tl.where(is_left, x, -float("inf")), axis=0)
        first = tl.min(tl.where(is_left & (x == best), ids, NOWHERE), axis=0)
        tl.store(best_logprobs + row * width + rank, (best.to(tl.float64) - norm).to(tl.float32))
        tl.store(best_ids + row * width + rank, first)
        is_left = is_left & (ids != first)
