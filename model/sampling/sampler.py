"""Sampling: from logits to the next token of each sequence.

Randomness comes from (seed, output position) alone, and each row is sampled by itself, so a request has the same
tokens in any batch and after a replay.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from caravan.model.sampling.sample import Sample
from caravan.model.sampling.sampling_params import SamplingParams
from caravan.model.sampling.truncation import Floats, is_truncated, kept_tokens

GREEDY_BELOW = 1e-5  # a temperature this small is greedy: dividing by it would overflow
BLOCK_WIDTH = 256  # neighbouring tokens whose maximum or sum is found first
LEAST_EXPONENT = -87.0
LEAST_WEIGHT = 1.7e-38  # just above exp of it
NUM_POSITIONS = 2**40  # more than any output has
LARGEST = torch.finfo(torch.float32).max
BELOW_ONE = math.nextafter(1.0, 0.0)

Masks = NDArray[np.uint8]  # [N, bytes], a bit for each token that may be drawn, the lowest of a byte first
FindMasks = Callable[[list[int]], Masks]  # of these rows
Draw = Callable[[Tensor, Sequence["SamplingRow"], FindMasks | None], list[Sample | None]]  # see `sample`


class SamplingRow(NamedTuple):
    """How one row of logits is sampled."""

    params: SamplingParams
    position: int  # output tokens before the one to sample
    prompt_token_ids: Sequence[int] = ()  # both for penalties and bad words; see needs_history
    output_token_ids: Sequence[int] = ()
    allows: Callable[[int], bool] | None = None  # whether the row's mask allows a token; None: it has none


def needs_history(params: SamplingParams) -> bool:
    """Return whether rows with these parameters need the tokens before them."""
    return has_penalties(params) or has_phrases(params)


def has_phrases(params: SamplingParams) -> bool:
    """Return whether some bad words have several tokens, so that the last tokens of the text ban the next one."""
    return any(len(word) > 1 for word in params.bad_words)


def has_penalties(params: SamplingParams) -> bool:
    """Return whether tokens of the text so far have penalties."""
    return params.repetition_penalty != 1.0 or params.presence_penalty != 0.0 or params.frequency_penalty != 0.0


def sample(logits: Tensor, rows: Sequence[SamplingRow], find_masks: FindMasks | None = None) -> list[Sample | None]:
    """Return the next token of each row of logits [S, vocab_size].

    None for a row with NaN or plus infinity, or where mask and bias allow no token. `find_masks` is needed if a row has
    a mask, such as that of a grammar.

    Such a row is first sampled without its mask: mostly it allows the token, and checking one token costs
    almost nothing. Otherwise it is masked and sampled again with another random number. A token x of the allowed set A
    then has the probability p(x) + (1 - p(A)) p(x) / p(A) = p(x) / p(A), as if the row had been masked at first.
    """
    assert logits.shape[0] == len(rows)
    scores = adjusted_logits(logits, rows)
    token_ids = choose(scores, rows, is_masked=False)
    masked = [
        index for index, token_id in enumerate(token_ids) if token_id is not None and forbids(rows[index], token_id)
    ]
    if masked:
        assert find_masks is not None, "a row has a mask"
        penalties = mask_penalties(find_masks(masked)).to(logits.device)
        allowed = scores[masked] + penalties[:, : logits.shape[1]]
        for index, token_id in zip(masked, choose(allowed, [rows[i] for i in masked], is_masked=True), strict=True):
            token_ids[index] = token_id
    samples = [None if token_id is None else Sample(token_id) for token_id in token_ids]
    for num_logprobs in {row.params.num_logprobs for row in rows} - {None}:
        asking = {
            index: token_id
            for index, token_id in enumerate(token_ids)
            if token_id is not None and rows[index].params.num_logprobs == num_logprobs
        }
        found = with_logprobs(logits[list(asking)], list(asking.values()), num_logprobs or 0)
        for index, one in zip(asking, found, strict=True):
            samples[index] = one
    return samples


def choose(scores: Tensor, rows: Sequence[SamplingRow], *, is_masked: bool) -> list[int | None]:
    """Return the best or a drawn token of each row of [S, vocab_size], None where the best logit is not finite.

    Rows that need a mask before a draw and do not have it yet get their best token.
    """
    drawn = [i for i, row in enumerate(rows) if not is_greedy(row) and (is_masked or not needs_mask(row))]
    others = sorted(set(range(len(rows))) - set(drawn))
    token_ids: dict[int, int | None] = {}
    if drawn:
        chosen = scores if len(drawn) == len(rows) else scores[drawn]
        token_ids |= zip(drawn, draw(chosen, [rows[i] for i in drawn], attempt=int(is_masked)), strict=True)
    if others:
        maxima, best_ids = largest_logits(scores if len(others) == len(rows) else scores[others])
        best = zip(best_ids.tolist(), maxima.isfinite().tolist(), strict=True)
        token_ids |= zip(others, [token_id if is_sound else None for token_id, is_sound in best], strict=True)
    return [token_ids[index] for index in range(len(rows))]


def is_greedy(row: SamplingRow) -> bool:
    """Return whether a row gets its best token."""
    return row.params.temperature < GREEDY_BELOW


def needs_mask(row: SamplingRow) -> bool:
    """Return whether a row must be masked before a draw, because truncation comes after the mask."""
    return row.allows is not None and is_truncated(row.params) and not is_greedy(row)


def forbids(row: SamplingRow, token_id: int) -> bool:
    """Return whether a row must be masked and sampled again."""
    return row.allows is not None and (needs_mask(row) or not row.allows(token_id))


def largest_logits(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return the largest logit of each row of [S, vocab_size] and the first token that has it, each [S].

    In a row with NaN the largest is NaN. torch's argmax reads one number at a time and its maximum many, so the maxima
    of short blocks are found first: 0.09 instead of 0.65 ms for 32 rows of 49,152.
    """
    num_rows, vocab_size = logits.shape
    width = math.gcd(vocab_size, BLOCK_WIDTH)
    blocks = logits.view(num_rows, vocab_size // width, width)
    maxima, block = blocks.amax(dim=-1).max(dim=-1)
    inside = blocks[torch.arange(num_rows, device=logits.device), block].argmax(dim=-1)
    return maxima, block * width + inside


def is_adjusted(row: SamplingRow) -> bool:
    """Return whether penalties, bias or banned tokens change logits of a row."""
    params = row.params
    return bool(has_penalties(params) or params.logit_bias or banned_tokens(row))


def banned_tokens(row: SamplingRow) -> list[int]:
    """Return the tokens that cannot be drawn: stop tokens that come too early, and the last tokens of bad words."""
    params = row.params
    banned = [*params.stop_token_ids] if row.position < params.min_tokens else []
    for *start, last in params.bad_words:
        if not start or [*row.output_token_ids[-len(start) :]] == start:
            banned.append(last)
    return banned


def adjusted_logits(logits: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
    """Return logits [S, vocab_size] after penalties, bias and banned tokens, in a new tensor if there are any."""
    adjusted = [index for index, row in enumerate(rows) if is_adjusted(row)]
    if not adjusted:
        return logits
    scores = logits.clone()
    for index in adjusted:
        adjust_logits(scores[index], rows[index])
    return scores


def mask_penalties(masks: Masks) -> Tensor:
    """Return penalties to add to logits, [S, 8 * bytes of a mask]: zero for allowed tokens, else minus infinity.

    Each byte of a mask is looked up in a table of eight penalties.
    """
    octets = np.unpackbits(np.arange(256, dtype=np.uint8).reshape(-1, 1), axis=1, bitorder="little")
    table = np.where(octets, np.float32(0), np.float32(-np.inf))  # [256, 8]
    return torch.from_numpy(table.take(masks, axis=0)).flatten(1)


def adjust_logits(logits: Tensor, row: SamplingRow) -> None:
    """Apply penalties, bias and banned tokens to logits [vocab_size], in place.

    repetition_penalty divides positive logits of tokens seen in prompt or output and multiplies negative ones
    (CTRL, arXiv:1909.05858, section 4.1); presence and frequency penalties are subtracted, once and per
    occurrence in the output.
    """
    params = row.params
    counts = Counter(row.output_token_ids) if params.presence_penalty or params.frequency_penalty else Counter()
    banned = banned_tokens(row)
    if params.repetition_penalty != 1.0:
        seen = torch.tensor(sorted({*row.prompt_token_ids, *row.output_token_ids}), dtype=torch.int64).to(logits.device)
        old = logits[seen]
        new = torch.where(old > 0, old / params.repetition_penalty, old * params.repetition_penalty)
        logits[seen] = torch.where(
            old.isfinite(), new.clamp(-LARGEST, LARGEST), old
        )  # a penalty near zero must not overflow
    for token_id, count in counts.items():
        logits[token_id] -= params.presence_penalty + count * params.frequency_penalty
    for token_id, bias in params.logit_bias.items():
        logits[token_id] += bias
    if banned:
        logits[banned] = -math.inf


def draw(logits: Tensor, rows: Sequence[SamplingRow], attempt: int = 0) -> list[int | None]:
    """Return a token for each row of [S, vocab_size], drawn from softmax(logits / temperature) after truncation.

    None where the largest logit is not finite. Each attempt has its own random number.
    """
    temperatures = torch.tensor([[row.params.temperature] for row in rows], device=logits.device)
    maxima = logits.amax(dim=-1, keepdim=True)
    exponents = (logits - maxima).div_(temperatures)
    # Weights below the normal numbers become zero: exp takes many times as long for them and for minus infinity.
    weights = torch.threshold_(torch.threshold_(exponents, LEAST_EXPONENT, LEAST_EXPONENT).exp_(), LEAST_WEIGHT, 0.0)
    width = math.gcd(logits.shape[1], BLOCK_WIDTH)
    sums = weights.view(len(rows), -1, width).sum(dim=-1)  # of short blocks
    parts = zip(weights.numpy(force=True), sums.numpy(force=True), maxima.isfinite().tolist(), rows, strict=True)
    return [
        draw_one(row_weights, row_sums, row.params, uniform(row.params.seed, row.position + attempt * NUM_POSITIONS))
        if is_sound
        else None
        for row_weights, row_sums, (is_sound,), row in parts
    ]


def draw_one(weights: Floats, sums: Floats, params: SamplingParams, number: float) -> int:
    """Return the token at `number` in [0, 1) of the cumulative distribution, after truncation.

    weights [vocab_size] are proportional to the probabilities; sums are those of equal blocks of them.
    """
    if is_truncated(params):
        tokens = kept_tokens(weights, params, float(sums.sum()))
        return int(tokens[place_of(number, weights[tokens])[0]])
    blocks = weights.reshape(len(sums), -1)
    block, inside = place_of(number, sums)
    return block * blocks.shape[1] + place_of(inside, blocks[block])[0]


def place_of(number: float, weights: Floats) -> tuple[int, float]:
    """Return the index whose interval of the normalized cumulative sum contains `number`, and its place in it.

    Both numbers are in [0, 1).
    """
    running_sum = weights.cumsum(dtype=np.float64)
    target = number * running_sum[-1]
    last = running_sum.searchsorted(running_sum[-1])  # rounding must not lead past the last weight above zero
    index = min(int(running_sum.searchsorted(target, side="right")), int(last))
    start = float(running_sum[index - 1]) if index else 0.0
    return index, min((float(target) - start) / (float(running_sum[index]) - start), BELOW_ONE)


def uniform(seed: int, position: int) -> float:
    """Return a number in [0, 1) that depends on seed and position alone.

    A counter-based generator: the finalizer of SplitMix64 (Steele et al., 2014, Fast splittable pseudorandom number
    generators) over the mixed seed plus position times the golden ratio.
    """
    word = _mix(_mix(seed) + (position + 1) * 0x9E3779B97F4A7C15)
    return (word >> 11) * 2.0**-53


def _mix(word: int) -> int:
    word &= 0xFFFFFFFFFFFFFFFF
    word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
    word = (word ^ (word >> 27)) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
    return word ^ (word >> 31)


def with_logprobs(logits: Tensor, token_ids: Sequence[int], num_logprobs: int) -> list[Sample]:
    """Return a sample for each row of logits [S, vocab_size], with log-probabilities under the model itself.

    They are those before penalties and temperature.
    """
    logprobs = log_probabilities(logits)
    top = logprobs.topk(min(num_logprobs, logits.shape[1]))  # [S, num_logprobs]
    top_ids, top_logprobs = top.indices.tolist(), top.values.tolist()
    chosen = logprobs[torch.arange(len(token_ids)), list(token_ids)].tolist()
    return [
        Sample(token_id, logprob, tuple(ids), tuple(values))
        for token_id, logprob, ids, values in zip(token_ids, chosen, top_ids, top_logprobs, strict=True)
    ]


def log_probabilities(logits: Tensor) -> Tensor:
    """Return the log-probability of each token, [S, vocab_size or a little more], for logits [S, vocab_size]."""
    if logits.is_cuda:  # there PyTorch adds up a row in another order if it does not begin at a multiple of 16 bytes
        logits = F.pad(logits, (0, -logits.shape[1] % 4), value=-math.inf)
    return logits.log_softmax(dim=-1)
