"""Paged attention in plain PyTorch: gathers each sequence's blocks and computes in float32."""

import math

import torch
from torch import Tensor

from caravan.model.forward_batch import ForwardBatch
from caravan.model.kv_quantization import dequantize_heads, quantize_heads
from caravan.model.linear import row_invariant_linear
from caravan.model.soft_cap import soft_cap

TILE = 256  # context positions per partial sum, and the width of every matrix product below


class ReferenceAttention:
    """Implements model.attention.PagedAttention. Source: PagedAttention (arXiv:2309.06180), equation 4."""

    block_multiple = 1

    def write(self, keys: Tensor, values: Tensor, key_cache: Tensor, value_cache: Tensor, slot_mapping: Tensor) -> None:
        """Store keys and values, each [T, num_kv_heads, head_dim], at the slots [T]."""
        if key_cache.dtype == torch.int8:
            keys, values = quantize_heads(keys), quantize_heads(values)
        key_cache.flatten(0, 1).index_copy_(0, slot_mapping, keys)
        value_cache.flatten(0, 1).index_copy_(0, slot_mapping, values)

    def __call__(
        self,
        queries: Tensor,
        key_cache: Tensor,
        value_cache: Tensor,
        batch: ForwardBatch,
        window: int | None = None,
        soft_cap: float | None = None,
        sinks: Tensor | None = None,
    ) -> Tensor:
        """Return the attention of every query over its own sequence, shape [T, num_heads, head_dim]."""
        block_size = key_cache.shape[1]
        output = torch.empty_like(queries)
        query_starts, seq_lens = batch.query_start_loc.tolist(), batch.seq_lens.tolist()
        for b, seq_len in enumerate(seq_lens):
            rows = slice(query_starts[b], query_starts[b + 1])
            blocks = batch.block_tables[b, : math.ceil(seq_len / block_size)]
            keys = key_cache[blocks].flatten(0, 1)[:seq_len]  # [seq_len, num_kv_heads, head_dim]
            values = value_cache[blocks].flatten(0, 1)[:seq_len]
            if key_cache.dtype == torch.int8:
                keys, values = (dequantize_heads(rows, queries.shape[-1]) for rows in (keys, values))
            output[rows] = causal_attention(queries[rows], keys, values, window, soft_cap, sinks)
        return output


def causal_attention(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    window: int | None = None,
    cap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Return softmax(q k / sqrt(head_dim)) v for the last n positions of one sequence, float32.

    With a cap the scores q k / sqrt(head_dim) are softly capped (Gemma 2). Sinks [num_heads] are learned scores, of
    which each head has one beside those of its keys; its value is zero (gpt-oss, arXiv:2508.10925, after StreamingLLM,
    arXiv:2309.17453).

    queries are [n, num_heads, head_dim], keys and values [context, num_kv_heads, head_dim]; the result is
    [n, num_heads, head_dim]. Sums over the context run inside tiles of fixed width, then over the tiles in order.
    Masked positions and the padding of the last tile add exact zeros, so a row has the same bits whether it is
    computed alone or inside a longer chunk.
    Source: Attention Is All You Need (arXiv:1706.03762), section 3.2.1; grouped heads arXiv:2305.13245.
    """
    num_queries, num_heads, head_dim = queries.shape
    context, num_kv_heads, _ = keys.shape
    device = queries.device
    group = num_heads // num_kv_heads  # query heads that share one KV head
    num_rows = num_queries * group
    num_tiles = math.ceil(context / TILE)

    padded_keys = torch.zeros(num_kv_heads, num_tiles * TILE, head_dim, device=device)
    padded_keys[:, :context] = keys.transpose(0, 1)
    padded_values = torch.zeros(num_kv_heads, num_tiles * TILE, head_dim, device=device)
    padded_values[:, :context] = values.transpose(0, 1)
    # Each tile is contiguous: oneDNN multiplies a slice of a wider matrix a hundred times more slowly.
    value_tiles = padded_values.view(num_kv_heads, num_tiles, TILE, head_dim).transpose(2, 3).contiguous()
    grouped = queries.view(num_queries, num_kv_heads, group, head_dim).transpose(0, 1).float() / math.sqrt(head_dim)
    grouped = grouped.reshape(num_kv_heads, num_rows, head_dim)

    scores = torch.empty(num_kv_heads, num_rows, num_tiles * TILE, device=device)
    for head in range(num_kv_heads):
        for tile in tiles(num_tiles):
            scores[head, :, tile] = row_invariant_linear(grouped[head], padded_keys[head, tile])
    if cap is not None:
        scores = soft_cap(scores, cap)
    positions = torch.arange(context - num_queries, context, device=device).repeat_interleave(group)  # [num_rows]
    distance = positions.unsqueeze(1) - torch.arange(num_tiles * TILE, device=device)  # [num_rows, context and padding]
    is_hidden = distance < 0 if window is None else (distance < 0) | (distance >= window)
    scores.masked_fill_(is_hidden, -math.inf)
    largest = scores.amax(dim=-1, keepdim=True)  # [num_kv_heads, num_rows, 1]
    if sinks is not None:
        sinks = sinks.float().view(num_kv_heads, group).repeat(1, num_queries).unsqueeze(-1)  # of each row
        largest = torch.maximum(largest, sinks)
    weights = scores.sub_(largest).exp_()  # the softmax before division by its sum

    sums = weights.view(num_kv_heads, num_rows, num_tiles, TILE).sum(dim=-1)  # one for each tile
    mixed = torch.empty(num_kv_heads, num_rows, head_dim, device=device)
    for head in range(num_kv_heads):
        first, *others = zip(tiles(num_tiles), value_tiles[head], strict=True)  # each [head_dim, TILE]
        mixed[head] = row_invariant_linear(weights[head, :, first[0]], first[1])
        for tile, tile_values in others:
            mixed[head] += row_invariant_linear(weights[head, :, tile], tile_values)
    total = sums[..., 0]  # [num_kv_heads, num_rows]
    for index in range(1, num_tiles):
        total = total + sums[..., index]
    if sinks is not None:
        total = total + torch.exp(sinks - largest).squeeze(-1)
    mixed /= total.unsqueeze(-1)
    return mixed.view(num_kv_heads, num_queries, group, head_dim).transpose(0, 1).reshape(queries.shape)


def tiles(num_tiles: int) -> list[slice]:
    """Return the positions of each tile."""
    return [slice(start, start + TILE) for start in range(0, num_tiles * TILE, TILE)]
