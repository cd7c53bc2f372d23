"""Traces: each number is one that the plain model computes."""

import base64
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from caravan.model.attention.reference import causal_attention
from caravan.model.forward_batch import ForwardBatch
from caravan.model.kv_cache import KVCache
from caravan.model.llama import Llama
from caravan.model.rope import apply_rope
from caravan.model.trace.attention_weights import attention_scores, head_habits, masked, softmax
from caravan.model.trace.recording import record, recording_llama
from caravan.model.trace.trace import trace
from tests.support.tiny_llama import TINY, tiny_llama

TOKENS = [3, 141, 59, 26, 141, 35, 89, 3, 97]
LAYER, HEAD, POSITION = 1, 3, 6
KINDS: list[dict[str, Any]] = [
    {},
    {"tie_embeddings": False, "has_qkv_bias": True},
    {"has_query_key_norm": True, "num_kv_heads": 1},
    {"sliding_window": 3},
    {"layers_without_rope": (1,), "logits_scaling": 2.0},
    {"embedding_multiplier": 3.0, "attention_multiplier": 0.2},
]


def traced_llama(**changes: Any) -> Llama:
    return tiny_llama(make_model=recording_llama, **changes)


def direct(model: Llama) -> Tensor:
    """Return the logits of the last token but two, from the model in the way that an engine calls it."""
    num_tokens = len(TOKENS)
    places = torch.arange(num_tokens)
    batch = ForwardBatch(
        token_ids=torch.tensor(TOKENS),
        positions=places,
        slot_mapping=places + 16,
        query_start_loc=torch.tensor([0, num_tokens], dtype=torch.int32),
        seq_lens=torch.tensor([num_tokens], dtype=torch.int32),
        block_tables=torch.tensor([[1]], dtype=torch.int32),
        wanted_rows=torch.tensor([POSITION]),
    )
    return model(batch, KVCache(model.config, 2, 16, torch.float32, torch.device("cpu")))[0]


def numbers(answer: dict[str, Any], stop: str, name: str) -> list[float]:
    """Return the numbers of a tensor of a stop."""
    (tensors,) = [one["tensors"] for one in answer["stops"] if one["name"] == stop]
    (found,) = [one["numbers"] for one in tensors if one["name"] == name]
    values: list[float] = found
    return values


def first(tensor: Tensor) -> list[float]:
    values: list[float] = tensor[:5].tolist()
    return values


@pytest.mark.parametrize("changes", KINDS)
def test_the_logits_are_those_of_the_plain_model(changes: dict[str, Any]) -> None:
    expected = direct(tiny_llama(**changes))
    answer = trace(traced_llama(**changes), TOKENS, LAYER, HEAD, POSITION)
    assert base64.b64decode(answer["logits"]) == expected.numpy().tobytes()
    assert numbers(answer, "logits", "logits") == first(expected)
    best = torch.softmax(expected, dim=-1).topk(200)
    assert answer["likeliest"] == list(zip(best.indices.tolist(), best.values.tolist(), strict=True))


@pytest.mark.parametrize("changes", KINDS)
def test_the_numbers_of_each_stop_are_computed_again_with_the_parts_of_the_model(changes: dict[str, Any]) -> None:
    model = traced_llama(**changes)
    answer = trace(model, TOKENS, LAYER, HEAD, POSITION)
    config = model.config
    kv_head = HEAD // (config.num_heads // config.num_kv_heads)
    x = record(model, TOKENS, 0, POSITION).outputs["layers.0"].clone()  # what the traced layer gets
    block = model.blocks()[LAYER]

    embedded = model.embedding.weight[TOKENS] * config.embedding_multiplier
    assert numbers(answer, "embedding", "x") == first(embedded[POSITION])

    normed = block.attention_norm(x)
    square = (x[POSITION] ** 2).mean().item()
    assert numbers(answer, "norm", "mean of the squares") == pytest.approx([square])
    assert numbers(answer, "norm", "norm(x)") == first(normed[POSITION])
    by_hand = x[POSITION] / math.sqrt(square + config.rms_norm_eps) * block.attention_norm.weight
    assert numbers(answer, "norm", "norm(x)") == pytest.approx(first(by_hand), rel=1e-5)

    qkv = block.attention.qkv(normed).view(len(TOKENS), -1, config.head_dim)
    queries, keys, values = qkv.split((config.num_heads, config.num_kv_heads, config.num_kv_heads), dim=1)
    queries, keys = block.attention.query_norm(queries), block.attention.key_norm(keys)
    assert numbers(answer, "qkv", "queries") == first(queries[POSITION, HEAD])
    assert numbers(answer, "qkv", "keys") == first(keys[POSITION, kv_head])
    assert numbers(answer, "qkv", "values") == first(values[POSITION, kv_head])

    cos, sin = model.rope_cos[: len(TOKENS)], model.rope_sin[: len(TOKENS)]
    if LAYER not in config.layers_without_rope:
        queries, keys = apply_rope(queries, cos, sin), apply_rope(keys, cos, sin)
    assert numbers(answer, "rope", "a cos - b sin") == first(queries[POSITION, HEAD])
    half = config.head_dim // 2
    assert numbers(answer, "rope", "b cos + a sin") == first(queries[POSITION, HEAD, half:])
    assert numbers(answer, "rope", "keys, rotated") == first(keys[POSITION, kv_head])
    parts = zip(*(numbers(answer, "rope", name) for name in ("a, the first half", "b, the second half")), strict=True)
    turned = [
        a * c - b * s
        for (a, b), c, s in zip(parts, numbers(answer, "rope", "cos"), numbers(answer, "rope", "sin"), strict=True)
    ]
    assert numbers(answer, "rope", "a cos - b sin") == pytest.approx(turned, rel=1e-4, abs=1e-6)

    scores = queries[:, HEAD] @ keys[:, kv_head].T / math.sqrt(config.head_dim)
    assert numbers(answer, "scores", "scores") == pytest.approx(first(scores[POSITION]), rel=1e-4, abs=1e-5)
    assert numbers(answer, "scores", "scores after the mask")[1:] == [None] * 4

    mixed = causal_attention(queries, keys, values, config.window(LAYER))
    assert numbers(answer, "values", "mixed values") == first(mixed[POSITION, HEAD])
    assert numbers(answer, "softmax", "sum of the weights") == pytest.approx([1])

    after = x + block.attention.output(mixed.flatten(1))
    assert numbers(answer, "residual", "x after") == first(after[POSITION])
    pairs = zip(numbers(answer, "residual", "x before"), numbers(answer, "residual", "attention"), strict=True)
    assert numbers(answer, "residual", "x after") == pytest.approx([a + b for a, b in pairs], rel=1e-5)

    down = block.feed_forward(block.feed_forward_norm(after))
    assert numbers(answer, "swiglu", "down") == first(down[POSITION])
    assert numbers(answer, "swiglu", "x after the layer") == first((after + down)[POSITION])
    gates = zip(numbers(answer, "swiglu", "gate"), numbers(answer, "swiglu", "up"), strict=True)
    inner = [gate / (1 + math.exp(-gate)) * up for gate, up in gates]
    assert numbers(answer, "swiglu", "silu(gate) * up") == pytest.approx(inner, rel=1e-4)


@pytest.mark.parametrize("changes", KINDS)
def test_the_attention_weights_mix_the_values_as_the_model_does(changes: dict[str, Any]) -> None:
    model = traced_llama(**changes)
    recording = record(model, TOKENS, LAYER, POSITION)
    attention = recording.attention
    for layer in range(TINY.num_layers):
        scores = attention_scores(attention.queries[layer], attention.keys[layer])
        weights = softmax(masked(scores, model.config.window(layer)))  # [num_heads, T, T]
        values = attention.values[layer].repeat_interleave(TINY.num_heads // model.config.num_kv_heads, dim=1)
        mixed = torch.einsum("hqk,khd->qhd", weights, values)
        torch.testing.assert_close(mixed, attention.mixed[layer], rtol=1e-4, atol=1e-5)
    answer = trace(model, TOKENS, LAYER, HEAD, POSITION)
    shown = torch.frombuffer(bytearray(base64.b64decode(answer["attention"])), dtype=torch.uint8)
    assert (shown.view(weights.shape).float() / 255 - weights).abs().max() <= 0.5 / 255 + 1e-6
    assert numbers(answer, "softmax", "weights") == first(weights[HEAD, POSITION])


def test_the_words_after_the_last_layer_are_the_likeliest_ones() -> None:
    answer = trace(traced_llama(), TOKENS, LAYER, HEAD, POSITION)
    assert len(answer["lens"]) == TINY.num_layers
    assert [token_id for token_id, _ in answer["lens"][-1]] == [token_id for token_id, _ in answer["likeliest"][:5]]
    assert answer["lens"][0] != answer["lens"][-1]


def test_a_head_that_looks_at_one_place_is_found_by_its_habit() -> None:
    tokens = [5, 6, 5, 6]
    to_first, to_previous, to_same = torch.zeros(3, 4, 4)
    to_first[:, 0] = 1
    to_previous[0, 0] = to_previous[1, 0] = to_previous[2, 1] = to_previous[3, 2] = 1
    to_same[0, 0] = to_same[1, 1] = to_same[2, 0] = to_same[3, 1] = 1
    habits = head_habits(torch.stack([to_first, to_previous, to_same]), tokens)
    assert habits[0] == [1, pytest.approx(1 / 3), 0.5]
    assert habits[1] == [pytest.approx(1 / 3), 1, 0]
    assert habits[2] == [pytest.approx(1 / 3), 0, 1]
    assert head_habits(torch.ones(1, 1, 1), [5]) == [[None, None, None]]


def test_a_recorded_model_computes_as_before_and_keeps_no_hooks() -> None:
    model = traced_llama()
    expected = direct(model)
    recording = record(model, TOKENS, 0, POSITION)
    assert torch.equal(recording.logits, expected)
    assert torch.equal(direct(model), expected)
    assert not any(module._forward_hooks for module in model.modules())
