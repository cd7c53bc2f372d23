"""Truncation: which tokens top_k, top_p and min_p keep."""

import math

import numpy as np
from numpy.typing import NDArray

from caravan.model.sampling.sampling_params import SamplingParams

BLOCK_WIDTH = 256  # neighbouring tokens whose maximum is found first
FIRST_BOUND = 16  # the nucleus is first searched among tokens of this many times the weight that always suffices

Floats = NDArray[np.float32]


def is_truncated(params: SamplingParams) -> bool:
    """Return whether tokens may be excluded from the draw."""
    return params.top_k > 0 or params.top_p < 1.0 or params.min_p > 0.0


def kept_tokens(weights: Floats, params: SamplingParams, mass: float) -> NDArray[np.int64]:
    """Return the tokens that top_k, then top_p of the rest, and min_p keep, in ascending order.

    weights [vocab_size] are proportional to the probabilities, mass is their sum. Each of the three keeps the tokens
    at or above some weight, so only tokens above a lower bound of it are examined. Tokens of exactly equal weight stay
    or go together. Sources: top_k arXiv:1805.04833, section 5.4; top_p (nucleus) arXiv:1904.09751, section 3.1; min_p
    arXiv:2407.01082, section 3.
    """
    threshold = params.min_p * float(weights.max()) if params.min_p > 0 else 0.0
    if 0 < params.top_k < len(weights):
        tokens = best_tokens(weights, params.top_k)
        mass = float(weights[tokens].sum(dtype=np.float64))
    elif params.top_p < 1.0:
        tokens = nucleus_candidates(weights, mass, params.top_p)
    else:
        return np.flatnonzero(weights >= threshold)
    kept = weights[tokens]
    if params.top_p < 1.0:
        threshold = max(threshold, nucleus_threshold(kept, params.top_p * mass))
    return tokens[kept >= threshold]


def best_tokens(weights: Floats, count: int) -> NDArray[np.int64]:
    """Return the tokens of the `count` greatest weights, and those of equal weight to the last of them.

    Each of the `count` greatest maxima of blocks is the weight of a token, so no token below all of them is among the
    best.
    """
    maxima = weights.reshape(-1, math.gcd(len(weights), BLOCK_WIDTH)).max(axis=1)
    bound = np.partition(maxima, -count)[-count] if count <= len(maxima) else 0.0
    tokens = np.flatnonzero(weights >= bound)
    kept = weights[tokens]
    best: NDArray[np.int64] = tokens[kept >= np.partition(kept, -count)[-count]]
    return best


def nucleus_candidates(weights: Floats, mass: float, top_p: float) -> NDArray[np.int64]:
    """Return tokens that hold the share top_p of the mass, and with each all that weigh as much or more.

    The tokens that weigh less than (1 - top_p) * mass / vocab_size hold less than 1 - top_p together, so the others
    always suffice. Mostly far fewer suffice, and those are tried first.
    """
    bound = (1.0 - top_p) * mass / len(weights)
    tokens = np.flatnonzero(weights >= FIRST_BOUND * bound)
    if weights[tokens].sum(dtype=np.float64) < top_p * mass:
        tokens = np.flatnonzero(weights >= bound)
    return tokens


def nucleus_threshold(weights: Floats, mass: float) -> float:
    """Return the largest weight t such that weights of t or more add up to the mass; the least weight if none does.

    Positive floats have the same order as their bits. So their upper bits sort them into buckets, and only the bucket
    in which the mass is reached is sorted.
    """
    buckets = weights.view(np.int32) >> 16
    buckets -= buckets.min()
    sums = np.bincount(buckets, weights=weights)
    running_sum = sums[::-1].cumsum()  # best first
    place = min(int(running_sum.searchsorted(mass)), len(sums) - 1)
    bucket = len(sums) - 1 - place
    inside = np.sort(weights[buckets == bucket])[::-1]
    running_sum = inside.cumsum(dtype=np.float64) + (running_sum[place] - sums[bucket])
    return float(inside[min(int(running_sum.searchsorted(mass)), len(inside) - 1)])
