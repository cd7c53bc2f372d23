"""Attention weights of a recorded pass, which attention itself never keeps."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from caravan.model.attention.reference import TILE
from caravan.model.linear import row_invariant_linear


def attention_scores(queries: Tensor, keys: Tensor) -> Tensor:
    """Return q k / sqrt(head_dim) before the mask, [num_heads, T, T], float32, for at most TILE tokens.

    queries are [T, num_heads, head_dim], keys [T, num_kv_heads, head_dim]. The products are those of causal_attention
    (model/attention/reference.py), whose result does not contain them.
    """
    num_tokens, num_heads, head_dim = queries.shape
    assert num_tokens <= TILE
    group = num_heads // keys.shape[1]  # query heads that share one KV head
    scaled = queries.float() / math.sqrt(head_dim)
    padded = torch.zeros(keys.shape[1], TILE, head_dim)
    padded[:, :num_tokens] = keys.transpose(0, 1)
    heads = [row_invariant_linear(scaled[:, head].contiguous(), padded[head // group]) for head in range(num_heads)]
    return torch.stack(heads)[:, :, :num_tokens]


def masked(scores: Tensor, window: int | None = None) -> Tensor:
    """Return scores [..., T, T] with minus infinity where a token may not look: ahead, or before its window."""
    places = torch.arange(scores.shape[-1])
    distance = places.unsqueeze(1) - places  # [T, T]
    is_hidden = distance < 0 if window is None else (distance < 0) | (distance >= window)
    return scores.masked_fill(is_hidden, -math.inf)


def softmax(scores: Tensor) -> Tensor:
    """Return exp(s - max) over its sum, along the last dimension."""
    weights = (scores - scores.amax(dim=-1, keepdim=True)).exp()
    return weights / weights.sum(dim=-1, keepdim=True)


def head_habits(weights: Tensor, token_ids: Sequence[int]) -> list[list[float | None]]:
    """Return for each head the mean weight on the first token, on the previous one and on earlier ones of the same id.

    weights are [num_heads, T, T]. Only tokens count that have such a token before them; None if there are none.
    """
    num_tokens = len(token_ids)
    ids = torch.tensor(token_ids)
    is_same = (ids.unsqueeze(1) == ids).tril(-1)  # [T, T]
    has_same = is_same.any(dim=-1)
    habits: list[list[float | None]] = []
    for head in weights:
        first = head[1:, 0].mean().item() if num_tokens > 1 else None
        previous = head.diagonal(-1).mean().item() if num_tokens > 1 else None
        same = (head * is_same).sum(dim=-1)[has_same].mean().item() if bool(has_same.any()) else None
        habits.append([first, previous, same])
    return habits
