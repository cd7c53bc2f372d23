"""Paged attention in plain PyTorch: gathers each sequence's blocks and computes in float32."""

import math

import torch
from torch import Tensor

from model.forward_batch import ForwardBatch
from model.linear import row_invariant_linear

TILE = 256  # context positions per partial sum; every matrix product below has this one width


def paged_attention(queries: Tensor, key_cache: Tensor, value_cache: Tensor, batch: ForwardBatch) -> Tensor:
    """Return the attention of every query over its own sequence, shape [T, num_heads, head_dim].

    The contract is model.attention.PagedAttention. Source: PagedAttention (arXiv:2309.06180), equation 4.
    """
    block_size = key_cache.shape[1]
    output = torch.empty_like(queries)
    query_starts, seq_lens = batch.query_start_loc.tolist(), batch.seq_lens.tolist()
    for b, seq_len in enumerate(seq_lens):
        rows = slice(query_starts[b], query_starts[b + 1])
        blocks = batch.block_tables[b, : math.ceil(seq_len / block_size)]
        keys = key_cache[blocks].flatten(0, 1)[:seq_len]  # [seq_len, num_kv_heads, head_dim]
        values = value_cache[blocks].flatten(0, 1)[:seq_len]
        output[rows] = causal_attention(queries[rows].float(), keys.float(), values.float()).to(queries.dtype)
    return output


def causal_attention(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Return softmax(q k / sqrt(head_dim)) v for the last n positions of one sequence, [n, num_heads, head_dim].

    queries are [n, num_heads, head_dim], keys and values [context, num_kv_heads, head_dim], all float32.
    Sums over the context run inside tiles of fixed width, then over the tiles in order. What lies behind
    a query (the mask, the padding of the last tile) adds exact zeros, so a row gives the same bits whether it is
    computed alone or inside a longer chunk.
    Source: Attention Is All You Need (arXiv:1706.03762), section 3.2.1; grouped heads arXiv:2305.13245.
    """
    num_queries, num_heads, head_dim = queries.shape
    context, num_kv_heads, _ = keys.shape
    group = num_heads // num_kv_heads  # query heads that share one KV head
    num_tiles = math.ceil(context / TILE)

    padding = (0, 0, 0, 0, 0, num_tiles * TILE - context)
    keys = torch.nn.functional.pad(keys, padding).view(num_tiles, TILE, num_kv_heads, head_dim)
    keys = keys.permute(2, 0, 1, 3).contiguous()  # [num_kv_heads, num_tiles, TILE, head_dim]
    values = torch.nn.functional.pad(values, padding).view(num_tiles, TILE, num_kv_heads, head_dim)
    values = values.permute(2, 0, 3, 1).contiguous()  # [num_kv_heads, num_tiles, head_dim, TILE]

    positions = torch.arange(context - num_queries, context, device=queries.device)
    hidden = torch.arange(num_tiles * TILE, device=queries.device) > positions.unsqueeze(1)  # [n, num_tiles * TILE]
    hidden = hidden.repeat_interleave(group, dim=0).view(-1, num_tiles, TILE)  # [n * group, num_tiles, TILE]

    queries = (queries / math.sqrt(head_dim)).view(num_queries, num_kv_heads, group, head_dim)
    outputs = []
    for kv_head in range(num_kv_heads):
        q = queries[:, kv_head].reshape(-1, head_dim)  # [n * group, head_dim]
        scores = torch.stack([row_invariant_linear(q, tile) for tile in keys[kv_head]], dim=1)
        scores.masked_fill_(hidden, -math.inf)  # [n * group, num_tiles, TILE]
        weights = (scores - scores.amax(dim=(1, 2), keepdim=True)).exp_()
        partial_sums = weights.sum(dim=-1, keepdim=True)  # [n * group, num_tiles, 1]
        numerator = row_invariant_linear(weights[:, 0].contiguous(), values[kv_head, 0])  # [n * group, head_dim]
        denominator = partial_sums[:, 0]  # [n * group, 1]
        for tile in range(1, num_tiles):
            numerator = numerator + row_invariant_linear(weights[:, tile].contiguous(), values[kv_head, tile])
            denominator = denominator + partial_sums[:, tile]
        outputs.append((numerator / denominator).view(num_queries, group, head_dim))
    return torch.cat(outputs, dim=1)  # [n, num_heads, head_dim]
