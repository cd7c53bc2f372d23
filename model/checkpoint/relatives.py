"""Relatives of Llama: the architectures that model/llama.py computes, and the flags by which they differ."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from caravan.model.checkpoint import BrokenCheckpoint
from caravan.model.checkpoint.gemma import gemma_flags, gemma_gguf_flags
from caravan.model.checkpoint.json_file import JsonFile
from caravan.model.checkpoint.layer_lists import every_layer
from caravan.model.config import UnsupportedModel

TensorNames = Mapping[str, str]  # as in checkpoint.py
Flags = dict[str, Any]  # fields of ModelConfig
ReadNumber = Callable[[str, float], float]  # a number of the metadata of a GGUF file, or the default

_NOPE_INTERVAL = 4  # SmolLM3: every fourth layer has no RoPE
_LARGEST_FACTOR = 1e6


@dataclass(frozen=True)
class Relative:
    """One architecture under the names that files have for it."""

    title: str
    model_type: str  # in config.json
    class_name: str  # in config.json, "architectures"
    gguf: str  # general.architecture
    differences: str  # from Llama 2, in words


RELATIVES = (
    Relative("Llama 1 to 3", "llama", "LlamaForCausalLM", "`llama`", "scaled RoPE"),
    Relative("Mistral", "mistral", "MistralForCausalLM", "`llama`, `mistral3`", "a sliding window"),
    Relative(
        *("Ministral 3", "ministral3", "Ministral3ForCausalLM", "`mistral3`"),
        "YaRN; queries scaled by their position; a window",
    ),
    Relative("Qwen 2", "qwen2", "Qwen2ForCausalLM", "`qwen2`", "biases of queries, keys and values; a window"),
    Relative("Qwen 3", "qwen3", "Qwen3ForCausalLM", "`qwen3`", "a norm of each query and key; a window"),
    Relative("SmolLM3", "smollm3", "SmolLM3ForCausalLM", "`smollm3`", "layers without RoPE"),
    Relative(
        *("Granite 3", "granite", "GraniteForCausalLM", "`granite`"),
        "factors of embeddings, scores, logits and of what layers add",
    ),
    Relative(
        *("Granite 4, dense", "granitemoehybrid", "GraniteMoeHybridForCausalLM", "`granite`"),
        "as Granite 3, gate and up projection fused; neither Mamba layers nor experts",
    ),
    Relative("OLMo 2", "olmo2", "Olmo2ForCausalLM", "`olmo2`", "norms after layers; norms of all queries and all keys"),
    Relative(
        *("OLMo 3", "olmo3", "Olmo3ForCausalLM", "`olmo2`"),
        "as OLMo 2; a window in three of four layers, whose RoPE is not scaled",
    ),
    Relative(
        "Phi-3, Phi-4", "phi3", "Phi3ForCausalLM", "`phi3`", "fused matrices, partial rotation, LongRoPE; a window"
    ),
    Relative(
        *("Gemma 2", "gemma2", "Gemma2ForCausalLM", "`gemma2`"),
        "norms before and after attention and feed-forward, GEGLU, soft caps of scores and logits, factors of "
        "embeddings and scores; a window in every second layer",
    ),
    Relative(
        *("Gemma 3, text", "gemma3_text", "Gemma3ForCausalLM", "`gemma3`"),
        "as Gemma 2 without soft caps of scores; a norm of each query and key; a window in five of six layers, with a "
        "RoPE of their own",
    ),
    Relative("Mixtral", "mixtral", "MixtralForCausalLM", "`llama`", "experts, whose weights add up to 1; a window"),
    Relative(
        *("Qwen 3, experts", "qwen3_moe", "Qwen3MoeForCausalLM", "`qwen3moe`"),
        "as Qwen 3, with experts in every layer",
    ),
    Relative("OLMoE", "olmoe", "OlmoeForCausalLM", "`olmoe`", "experts; norms of all queries and all keys"),
    Relative(
        *("gpt-oss", "gpt_oss", "GptOssForCausalLM", "`gpt-oss`"),
        "experts with biases and a clamped SwiGLU; a sink for each head; biases in attention; YaRN; a window in every "
        "second layer; in plain PyTorch only",
    ),
    Relative("InternLM 3", "internlm3", "InternLM3ForCausalLM", "`llama`", "the name"),
)
_OLMO2: Flags = {"has_query_key_norm": True, "has_reordered_norm": True, "query_key_norm_spans_heads": True}
_GEMMA_NAMES: TensorNames = {"feed_forward_norm": "model.layers.{}.pre_feedforward_layernorm.weight"}
_OLMO_NAMES: TensorNames = {
    "attention_norm": "model.layers.{}.post_attention_layernorm.weight",
    "feed_forward_norm": "model.layers.{}.post_feedforward_layernorm.weight",
}
_HUGGING_FACE_NAMES: Mapping[str, TensorNames] = MappingProxyType(  # where they differ from Llama's
    {
        **dict.fromkeys(("Gemma2ForCausalLM", "Gemma3ForCausalLM"), _GEMMA_NAMES),
        **dict.fromkeys(("Olmo2ForCausalLM", "Olmo3ForCausalLM"), _OLMO_NAMES),
        "Phi3ForCausalLM": dict.fromkeys(("q", "k", "v"), "model.layers.{}.self_attn.qkv_proj.weight")
        | dict.fromkeys(("gate", "up"), "model.layers.{}.mlp.gate_up_proj.weight"),
        "GraniteMoeHybridForCausalLM": {
            **dict.fromkeys(("gate", "up"), "model.layers.{}.shared_mlp.input_linear.weight"),
            "down": "model.layers.{}.shared_mlp.output_linear.weight",
        },
    }
)
_GGUF_NAMES: Mapping[str, TensorNames] = MappingProxyType(
    {
        "olmo2": {
            "attention_norm": "blk.{}.post_attention_norm.weight",
            "feed_forward_norm": "blk.{}.post_ffw_norm.weight",
        },
        "gpt-oss": {"feed_forward_norm": "blk.{}.post_attention_norm.weight"},
        "phi3": dict.fromkeys(("q", "k", "v"), "blk.{}.attn_qkv.weight")
        | dict.fromkeys(("gate", "up"), "blk.{}.ffn_up.weight"),
    }
)


def huggingface_names(architecture: str) -> TensorNames:
    """Return the tensors that this architecture has under other names than Llama."""
    return _HUGGING_FACE_NAMES.get(architecture, {})


def gguf_names(architecture: str) -> TensorNames:
    """Return the same for GGUF files."""
    return _GGUF_NAMES.get(architecture, {})


def table() -> str:
    """Return the table of architectures in docs/models.md, in Markdown."""
    rows = [("architecture", "`architectures` in config.json", "in GGUF", "beyond Llama 2"), ("---",) * 4]
    rows += [(each.title, f"`{each.class_name}`", each.gguf, each.differences) for each in RELATIVES]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def relative_flags(architecture: str, fields: JsonFile) -> Flags:
    """Return the fields of ModelConfig that only this architecture sets, from a config.json."""
    match architecture:
        case "SmolLM3ForCausalLM":
            return {"layers_without_rope": _layers_without_rope(fields)}
        case "GraniteForCausalLM" | "GraniteMoeHybridForCausalLM":
            names = ("embedding_multiplier", "residual_multiplier", "attention_multiplier", "logits_scaling")
            factors = (fields.number(name, 1) for name in names)
            flags = _granite(fields.path, fields.number("rms_norm_eps", 1e-6), *factors)
            return flags if architecture == "GraniteForCausalLM" else flags | _dense_hybrid(fields)
        case "Ministral3ForCausalLM":
            rope = fields.part("rope_parameters") or fields
            scale = rope.number("llama_4_scaling_beta")
            return _temperature(scale, rope.integer("original_max_position_embeddings"))
        case "Gemma2ForCausalLM" | "Gemma3ForCausalLM":
            return gemma_flags(architecture, fields)
        case "Olmo2ForCausalLM" | "Olmo3ForCausalLM":
            return _OLMO2
        case "InternLM3ForCausalLM" if fields.flag("bias", False) or fields.flag("qkv_bias", False):
            raise UnsupportedModel(f"{fields.path} has biases in the feed-forward network, which are not supported.")
    return {}


def gguf_flags(architecture: str, path: Path, number: ReadNumber, num_layers: int) -> Flags:
    """Return the same fields from the metadata of a GGUF file."""
    match architecture:
        case "smollm3":
            return {"layers_without_rope": every_layer(_NOPE_INTERVAL, num_layers, path, "RoPE")}
        case "granite":
            factors = (number("embedding_scale", 1), number("residual_scale", 1), number("attention.scale", 0) or None)
            return _granite(path, number("attention.layer_norm_rms_epsilon", 1e-6), *factors, number("logit_scale", 1))
        case "mistral3" if scale := number("attention.temperature_scale", 0):
            return _temperature(scale, int(number("rope.scaling.original_context_length", 0)))
        case "gemma2" | "gemma3":
            return gemma_gguf_flags(architecture, str(path), number)
        case "olmo2":
            return _OLMO2
    return {}


def _layers_without_rope(fields: JsonFile) -> tuple[int, ...]:
    """Return the layers that `no_rope_layers` has a 0 for; it has a 1 for those with RoPE."""
    num_layers = fields.integer("num_hidden_layers")
    if "no_rope_layers" not in fields:
        interval = fields.integer("no_rope_layer_interval", _NOPE_INTERVAL)
        return every_layer(interval, num_layers, fields.path, "RoPE")
    marks = fields.items("no_rope_layers")
    if len(marks) < num_layers or not all(mark in (0, 1) for mark in marks):
        raise BrokenCheckpoint(f"{fields.path}: no_rope_layers must have a 0 or 1 for each of {num_layers} layers.")
    return tuple(layer for layer, mark in enumerate(marks[:num_layers]) if not mark)


def _temperature(scale: float, length: int) -> Flags:
    return {"attention_temperature_scale": scale, "attention_temperature_length": length}


def _dense_hybrid(fields: JsonFile) -> Flags:
    """Return the flags of a Granite 4 that has only attention and one feed-forward network in each layer."""
    if fields.integer("num_local_experts", 8) > 0:
        raise UnsupportedModel(f"{fields.path} describes a mixture of experts; only dense models are supported.")
    kinds = fields.items("layer_types")
    is_attention = [kind in ("attention", "full_attention") for kind in kinds]
    if len(kinds) != fields.integer("num_hidden_layers") or not all(is_attention):
        raise UnsupportedModel(f"{fields.path} has Mamba layers, which are not supported.")
    if fields.text("position_embedding_type", "") != "rope":
        raise UnsupportedModel(f"{fields.path} has no RoPE in any layer, which is not supported.")
    return {"intermediate_size": fields.integer("shared_intermediate_size", 1024)}


def _granite(
    path: Path, eps: float, embedding: float, residual: float, attention: float | None, logits: float
) -> Flags:
    """Return the flags for Granite's four factors, three of which the model has.

    Granite adds `residual` times what a part of a layer returns to x. Here x is kept divided by it. A norm of x / r
    with eps / r**2 is the norm of x with eps, so the parts get the same inputs, and nothing else reads x.
    """
    factors = {"embedding": embedding, "residual": residual, "attention": attention, "logits": logits}
    for name, factor in factors.items():
        if factor is not None and not 1 / _LARGEST_FACTOR <= factor <= _LARGEST_FACTOR:
            raise UnsupportedModel(f"{path}: the factor of {name} is {factor:g}; it must be from 1e-06 to 1e+06.")
    return {
        "embedding_multiplier": embedding / residual,
        "rms_norm_eps": eps / residual**2,
        "attention_multiplier": attention,
        "logits_scaling": logits,
    }
