"""GGUF files for tests: tiny Llamas written as a converter writes them."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

from caravan.model.config import ModelConfig
from caravan.model.llama import Llama
from tests.model.vocabularies import gpt2_metadata
from tests.support.tiny_llama import tiny_llama

Tensors = dict[str, tuple[np.ndarray[Any, Any], gguf.GGMLQuantizationType]]  # name -> stored bytes or floats, type

F32 = gguf.GGMLQuantizationType.F32
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_tiny_llama(
    path: Path,
    *,
    model: Llama | None = None,
    quantize: gguf.GGMLQuantizationType = F32,
    metadata: Mapping[str, object | None] | None = None,
    change: Callable[[Tensors], None] = lambda tensors: None,
) -> Llama:
    """Write a model (a random one by default) and return it; its vocabulary and a ChatML template are in the file.

    Matrices are stored in the type `quantize`; `metadata` adds fields, or removes those that are None;
    `change` may spoil the tensors before they are written.
    """
    vocabulary = gpt2_metadata() | {"tokenizer.chat_template": CHATML}
    tokens = vocabulary["tokenizer.ggml.tokens"]
    assert isinstance(tokens, list)
    model = model or tiny_llama(vocab_size=len(tokens), hidden_size=64, intermediate_size=96, head_dim=16)
    fields = gguf_metadata(replace(model.config, vocab_size=len(tokens))) | vocabulary | dict(metadata or {})
    writer = gguf.GGUFWriter(path, "llama")
    for name, value in fields.items():
        if value is not None:
            _add_field(writer, name, value)
    tensors = gguf_tensors(model, quantize)
    change(tensors)
    for name in sorted(tensors):
        array, kind = tensors[name]
        writer.add_tensor(name, array, raw_dtype=None if kind is F32 else kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def gguf_metadata(config: ModelConfig) -> dict[str, object]:
    """Return the `llama.*` fields of a model."""
    return {
        "llama.context_length": config.max_position,
        "llama.embedding_length": config.hidden_size,
        "llama.block_count": config.num_layers,
        "llama.feed_forward_length": config.intermediate_size,
        "llama.attention.head_count": config.num_heads,
        "llama.attention.head_count_kv": config.num_kv_heads,
        "llama.attention.key_length": config.head_dim,
        "llama.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "llama.rope.freq_base": config.rope_theta,
        "llama.rope.dimension_count": config.head_dim,
        **({"llama.expert_count": config.num_experts} if config.num_experts else {}),
        **({"llama.expert_used_count": config.num_chosen_experts} if config.num_experts else {}),
    }


def gguf_tensors(model: Llama, quantize: gguf.GGMLQuantizationType = F32) -> Tensors:
    """Return the model's weights under the names and in the layout of GGUF; norms stay float32."""
    config = model.config
    own = {name: weight.detach().float() for name, weight in model.named_parameters()}
    plain = {"token_embd.weight": own["embedding.weight"], "output_norm.weight": own["norm.weight"]}
    if not config.tie_embeddings:
        plain["output.weight"] = own["output.weight"]
    for i in range(config.num_layers):
        theirs, ours = f"blk.{i}.", f"layers.{i}."
        rows = [config.num_heads * config.head_dim, *[config.num_kv_heads * config.head_dim] * 2]
        q, k, v = own[ours + "attention.qkv.weight"].split(rows)
        plain |= {
            theirs + "attn_norm.weight": own[ours + "attention_norm.weight"],
            theirs + "attn_q.weight": interleaved(q, config.num_heads),
            theirs + "attn_k.weight": interleaved(k, config.num_kv_heads),
            theirs + "attn_v.weight": v,
            theirs + "attn_output.weight": own[ours + "attention.output.weight"],
            theirs + "ffn_norm.weight": own[ours + "feed_forward_norm.weight"],
        }
        plain |= {
            f"{theirs}ffn_{word}.weight": weight
            for word, weight in _feed_forward(own, ours, config.num_experts).items()
        }
    return {name: _stored(weight, quantize if weight.dim() > 1 else F32) for name, weight in plain.items()}


def _feed_forward(own: Mapping[str, torch.Tensor], layer: str, num_experts: int) -> dict[str, torch.Tensor]:
    """Return the weights of a feed-forward network, or of a router and its experts, which are stacked."""
    if not num_experts:
        gate, up = own[f"{layer}feed_forward.gate_up.weight"].chunk(2)
        return {"gate": gate, "up": up, "down": own[f"{layer}feed_forward.down.weight"]}
    experts = [f"{layer}feed_forward.experts.{expert}." for expert in range(num_experts)]
    gate, up = torch.stack([own[f"{expert}gate_up.weight"] for expert in experts]).chunk(2, dim=1)
    down = torch.stack([own[f"{expert}down.weight"] for expert in experts])
    return {
        "gate_inp": own[f"{layer}feed_forward.router.weight"],
        **{"gate_exps": gate, "up_exps": up, "down_exps": down},
    }


def interleaved(weight: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Return the rows of a half-split Q or K matrix in interleaved order, row by row as converters define it."""
    head_dim = weight.shape[0] // num_heads
    order = [
        head * head_dim + half * head_dim // 2 + pair
        for head in range(num_heads)
        for pair in range(head_dim // 2)
        for half in (0, 1)
    ]
    return weight[order]


def _stored(weight: torch.Tensor, kind: gguf.GGMLQuantizationType) -> tuple[np.ndarray[Any, Any], Any]:
    values = weight.contiguous().numpy()
    return (values if kind is F32 else gguf.quantize(values, kind)), kind


def _add_field(writer: gguf.GGUFWriter, name: str, value: object) -> None:
    match value:
        case bool():
            writer.add_bool(name, value)
        case int():
            writer.add_uint32(name, value)
        case float():
            writer.add_float32(name, value)
        case str():
            writer.add_string(name, value)
        case list():
            writer.add_array(name, value)
        case _:
            raise TypeError(f"{name} is {value!r}")
