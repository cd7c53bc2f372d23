"""The trace of a text: the numbers of a recorded pass that a reader sees, as a JSON object."""

import base64
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from caravan.model.llama import Llama
from caravan.model.trace.attention_weights import attention_scores, head_habits, masked, softmax
from caravan.model.trace.recording import Recording, record

NUM_NUMBERS = 5  # shown of each tensor
NUM_WORDS = 5  # likeliest ones after each layer
NUM_LIKELIEST = 200  # after the last one

Json = dict[str, Any]


def trace(model: Llama, token_ids: Sequence[int], layer: int, head: int, position: int) -> Json:
    """Return the trace of a `recording_llama`: see ModelTrace in server/learn/protocol.py for its fields.

    `head` is a query head. Rows are those of the token at `position`.
    """
    recording = record(model, token_ids, layer, position)
    attention, window = recording.attention, model.config.window
    weights = [
        softmax(masked(attention_scores(queries, keys), window(index)))
        for index, (queries, keys) in enumerate(zip(attention.queries, attention.keys, strict=True))
    ]  # of each layer, [num_heads, T, T]
    config = model.config
    return {
        "num_layers": config.num_layers,
        "num_heads": config.num_heads,
        "num_kv_heads": config.num_kv_heads,
        "stops": [
            {"name": name, "tensors": tensors} for name, tensors in _stops(model, recording, weights[layer], head)
        ],
        "attention": _text_of((weights[layer] * 255).round().to(torch.uint8)),
        "habits": [head_habits(one, token_ids) for one in weights],
        "lens": [_likeliest(logits, NUM_WORDS) for logits in recording.lens],
        "logits": _text_of(recording.logits),
        "likeliest": _likeliest(recording.logits, NUM_LIKELIEST),
    }


def shown(name: str, tensor: Tensor, row: tuple[int, ...], where: str) -> Json:
    """Return a tensor's name, its shape, and the first numbers of one row; minus infinity is None.

    `row` has an index for each dimension but the last, `where` says in words what it names.
    """
    numbers = tensor[row][:NUM_NUMBERS].float().tolist()
    return {
        "name": name,
        "shape": list(tensor.shape),
        "where": where,
        "numbers": [number if math.isfinite(number) else None for number in numbers],
    }


def _likeliest(logits: Tensor, count: int) -> list[tuple[int, float]]:
    """Return the likeliest tokens for logits [vocab_size], and their probabilities at temperature 1."""
    found = torch.softmax(logits, dim=-1).topk(min(count, len(logits)))
    return list(zip(found.indices.tolist(), found.values.tolist(), strict=True))


def _text_of(tensor: Tensor) -> str:
    """Return the bytes of a tensor, little-endian, in base64."""
    return base64.b64encode(tensor.contiguous().numpy().tobytes()).decode()


def _stops(model: Llama, recording: Recording, weights: Tensor, head: int) -> list[tuple[str, list[Json]]]:
    """Return the tensors of each stop between token ids and the draw."""
    inputs, outputs, attention = recording.inputs, recording.outputs, recording.attention
    config, layer, row = model.config, recording.layer, (recording.position,)
    kv_head = head // (config.num_heads // config.num_kv_heads)
    token = f"token {recording.position}"
    of_head, of_kv_head = f"{token}, head {head}", f"{token}, KV head {kv_head}"
    block = model.blocks()[layer]
    x = inputs["attention_norm"]
    qkv = outputs["attention.qkv"].view(len(x), -1, config.head_dim)
    values_before = qkv[:, config.num_heads + config.num_kv_heads :]
    queries, keys = outputs["attention.query_norm"], outputs["attention.key_norm"]
    half = config.head_dim // 2
    cos, sin = model.rope_cos[: len(x)], model.rope_sin[: len(x)]
    if not block.attention.has_rope:  # as if each pair were rotated by no angle
        cos, sin = torch.ones_like(cos), torch.zeros_like(sin)
    scores = attention_scores(attention.queries[layer], attention.keys[layer])
    hidden = masked(scores, config.window(layer))
    after_attention = inputs["feed_forward_norm"]
    gate, up = outputs["feed_forward.gate_up"].chunk(2, dim=-1)
    after_layer = outputs[f"layers.{layer}"]
    logits = recording.logits.unsqueeze(0)
    return [
        ("embedding", [shown("x", inputs["layers.0"], row, token)]),
        (
            "norm",
            [
                shown("x", x, row, token),
                shown("mean of the squares", x.float().pow(2).mean(dim=-1, keepdim=True), row, token),
                shown("weight", block.attention_norm.weight, (), "all tokens"),
                shown("norm(x)", outputs["attention_norm"], row, token),
            ],
        ),
        (
            "qkv",
            [
                shown("queries", queries, (*row, head), of_head),
                shown("keys", keys, (*row, kv_head), of_kv_head),
                shown("values", values_before, (*row, kv_head), of_kv_head),
            ],
        ),
        (
            "rope",
            [
                shown("a, the first half", queries[..., :half], (*row, head), of_head),
                shown("b, the second half", queries[..., half:], (*row, head), of_head),
                shown("cos", cos, row, token),
                shown("sin", sin, row, token),
                shown("a cos - b sin", attention.queries[layer][..., :half], (*row, head), of_head),
                shown("b cos + a sin", attention.queries[layer][..., half:], (*row, head), of_head),
                shown("keys, rotated", attention.keys[layer], (*row, kv_head), of_kv_head),
            ],
        ),
        (
            "scores",
            [
                shown("scores", scores, (head, *row), f"{of_head}: over the keys of the first tokens"),
                shown("scores before the mask", scores, (head, 0), f"token 0, head {head}"),
                shown("scores after the mask", hidden, (head, 0), f"token 0, head {head}"),
            ],
        ),
        (
            "softmax",
            [
                shown("weights", weights, (head, *row), of_head),
                shown("sum of the weights", weights.sum(dim=-1, keepdim=True), (head, *row), of_head),
            ],
        ),
        (
            "values",
            [
                shown("values", attention.values[layer], (0, kv_head), f"token 0, KV head {kv_head}"),
                shown("mixed values", attention.mixed[layer], (*row, head), of_head),
            ],
        ),
        (
            "residual",
            [
                shown("x before", x, row, token),
                shown("attention", outputs["attention"], row, token),
                shown("x after", after_attention, row, token),
            ],
        ),
        (
            "swiglu",
            [
                shown("gate", gate, row, token),
                shown("up", up, row, token),
                shown("silu(gate) * up", inputs["feed_forward.down"], row, token),
                shown("down", outputs["feed_forward"], row, token),
                shown("x after the layer", after_layer, row, token),
            ],
        ),
        (
            "logits",
            [
                shown("x after the last layer", inputs["norm"], (0,), token),
                shown("norm(x)", outputs["norm"], (0,), token),
                shown("logits", logits, (0,), f"after {token}: the first tokens of the vocabulary"),
            ],
        ),
    ]
