"""Attention sinks in the reference: one more score of each head, without a value; and the kernels that have none."""

import math

import pytest
import torch
from torch import Tensor

from caravan.model.attention.reference import TILE, causal_attention

NUM_HEADS, NUM_KV_HEADS, HEAD_DIM = 6, 2, 8
SINKS = torch.tensor([-2.0, 0.5, 3.0, 0.0, 6.0, 1.0])


def random_inputs(num_queries: int, context: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(context)
    queries = 2 * torch.randn(num_queries, NUM_HEADS, HEAD_DIM, generator=generator)
    keys, values = (torch.randn(context, NUM_KV_HEADS, HEAD_DIM, generator=generator) for _ in range(2))
    return queries, keys, values


def softmax_with_sink(queries: Tensor, keys: Tensor, values: Tensor, window: int | None) -> Tensor:
    """Compute one head of one query after another, in float64."""
    output = torch.empty(queries.shape)
    first = len(keys) - len(queries)
    for row, heads in enumerate(queries):
        end = first + row + 1
        start = 0 if window is None else max(0, end - window)
        for head, query in enumerate(heads):
            kv_head = head // (NUM_HEADS // NUM_KV_HEADS)
            scores = keys[start:end, kv_head].double() @ query.double() / math.sqrt(HEAD_DIM)
            weights = torch.cat((scores, SINKS[head : head + 1].double())).softmax(dim=0)[:-1]
            output[row, head] = weights @ values[start:end, kv_head].double()
    return output


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize(("num_queries", "context"), [(1, 1), (7, 20), (3, TILE + 9)])
def test_a_sink_is_a_score_without_a_value(num_queries: int, context: int, window: int | None) -> None:
    inputs = random_inputs(num_queries, context)
    mixed = causal_attention(*inputs, window, sinks=SINKS)
    torch.testing.assert_close(mixed, softmax_with_sink(*inputs, window), atol=1e-5, rtol=1e-5)


def test_a_row_has_the_same_bits_alone_and_in_a_chunk() -> None:
    queries, keys, values = random_inputs(30, 290)
    together = causal_attention(queries, keys, values, 19, sinks=SINKS)
    for row in (0, 7, 29):
        end = 260 + row + 1
        alone = causal_attention(queries[row : row + 1], keys[:end], values[:end], 19, sinks=SINKS)
        assert torch.equal(alone[0], together[row])


def test_an_empty_sink_changes_no_bit_and_a_huge_one_takes_all() -> None:
    inputs = random_inputs(4, 12)
    assert torch.equal(causal_attention(*inputs, sinks=torch.full((NUM_HEADS,), -math.inf)), causal_attention(*inputs))
    assert not causal_attention(*inputs, sinks=torch.full((NUM_HEADS,), 1e4)).any()
