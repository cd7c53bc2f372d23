"""Mixtures of experts in files: what describes them, and which tensors have them.

The experts of a layer are matrices of their own (Hugging Face), or stacked in one tensor [experts, rows, inputs] (GGUF,
and what transformers 5 has in memory). A stacked tensor is read as a matrix of all their rows.
"""

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from caravan.model.checkpoint.gguf_fields import GgufFields
from caravan.model.checkpoint.json_file import JsonFile
from caravan.model.checkpoint.part import Part
from caravan.model.config import ModelConfig, UnsupportedModel

TensorNames = Mapping[str, str]  # as in checkpoint.py
Shapes = Mapping[str, tuple[int, ...]]
Flags = dict[str, Any]  # fields of ModelConfig

MIXTRAL, QWEN3_MOE, OLMOE = "MixtralForCausalLM", "Qwen3MoeForCausalLM", "OlmoeForCausalLM"
GPT_OSS = "GptOssForCausalLM"
_QWEN_NAMES: TensorNames = MappingProxyType(
    {
        "router": "model.layers.{}.mlp.gate.weight",
        "gate": "model.layers.{}.mlp.experts.{}.gate_proj.weight",
        "up": "model.layers.{}.mlp.experts.{}.up_proj.weight",
        "down": "model.layers.{}.mlp.experts.{}.down_proj.weight",
    }
)
_OWN_NAMES: Mapping[str, TensorNames] = MappingProxyType(  # the second {} is the expert
    {
        MIXTRAL: {
            "router": "model.layers.{}.block_sparse_moe.gate.weight",
            "gate": "model.layers.{}.block_sparse_moe.experts.{}.w1.weight",
            "up": "model.layers.{}.block_sparse_moe.experts.{}.w3.weight",
            "down": "model.layers.{}.block_sparse_moe.experts.{}.w2.weight",
        },
        **dict.fromkeys((QWEN3_MOE, OLMOE), _QWEN_NAMES),
        GPT_OSS: {
            "sinks": "model.layers.{}.self_attn.sinks",
            "router": "model.layers.{}.mlp.router.weight",
            "router_bias": "model.layers.{}.mlp.router.bias",
            **dict.fromkeys(("gate", "up"), "model.layers.{}.mlp.experts.gate_up_proj"),
            **dict.fromkeys(("gate_bias", "up_bias"), "model.layers.{}.mlp.experts.gate_up_proj_bias"),
            "down": "model.layers.{}.mlp.experts.down_proj",
            "down_bias": "model.layers.{}.mlp.experts.down_proj_bias",
        },
    }
)
_STACKED_NAMES: TensorNames = MappingProxyType(  # gate and up projection of an expert one after the other
    {
        "router": "model.layers.{}.mlp.gate.weight",
        **dict.fromkeys(("gate", "up"), "model.layers.{}.mlp.experts.gate_up_proj"),
        "down": "model.layers.{}.mlp.experts.down_proj",
    }
)
_GGUF_NAMES: TensorNames = MappingProxyType(
    {
        "router": "blk.{}.ffn_gate_inp.weight",
        "gate": "blk.{}.ffn_gate_exps.weight",
        "up": "blk.{}.ffn_up_exps.weight",
        "down": "blk.{}.ffn_down_exps.weight",
        "router_bias": "blk.{}.ffn_gate_inp.bias",
        "gate_bias": "blk.{}.ffn_gate_exps.bias",
        "up_bias": "blk.{}.ffn_up_exps.bias",
        "down_bias": "blk.{}.ffn_down_exps.bias",
        "sinks": "blk.{}.attn_sinks.weight",
    }
)
_STACKED = re.compile(
    r"blk\.\d+\.ffn_(gate|up|down)_exps\.weight|model\.layers\.\d+\.mlp\.experts\.(gate_up|down)_proj"
)
_STACKED_BIAS = re.compile(
    r"blk\.\d+\.ffn_(gate|up|down)_exps\.bias|model\.layers\.\d+\.mlp\.experts\.(gate_up|down)_proj_bias"
)
_SOFTMAX, _OF_CHOSEN = (0, 1), 3  # of expert_gating_func: not stated, over all experts; over the chosen ones
_GPT_OSS_FLAGS: Flags = {"has_attention_sinks": True, "has_expert_bias": True}
_SWIGLU_LIMIT, _SWIGLU_ALPHA = 7.0, 1.702  # of gpt-oss; GGUF files do not state them


def huggingface_expert_flags(architecture: str, fields: JsonFile) -> Flags:
    """Return the fields of ModelConfig that describe experts, from a config.json. Defaults: as in transformers."""
    match architecture:
        case "MixtralForCausalLM":
            num_experts = fields.integer("num_local_experts", 8)
            return _flags(num_experts, fields.integer("num_experts_per_tok", 2), normalizes=True)
        case "Qwen3MoeForCausalLM":
            if fields.items("mlp_only_layers") or fields.integer("decoder_sparse_step", 1) != 1:
                raise UnsupportedModel(f"{fields.path} has layers without experts, which are not supported.")
            num_experts = fields.integer("num_experts", fields.integer("num_local_experts", 128))
            return {
                **_flags(num_experts, fields.integer("num_experts_per_tok", 8), normalizes=_normalizes(fields)),
                "intermediate_size": fields.integer("moe_intermediate_size", 768),
                "has_query_key_norm": True,
            }
        case "OlmoeForCausalLM":
            if fields.raw().get("clip_qkv") is not None:
                raise UnsupportedModel(f"{fields.path} clips queries, keys and values, which is not supported.")
            num_experts = fields.integer("num_experts", fields.integer("num_local_experts", 64))
            return {
                **_flags(num_experts, fields.integer("num_experts_per_tok", 8), normalizes=_normalizes(fields)),
                "has_query_key_norm": True,
                "query_key_norm_spans_heads": True,
            }
        case "GptOssForCausalLM":
            return {
                **_flags(fields.integer("num_local_experts", 128), fields.integer("num_experts_per_tok", 4)),
                **_GPT_OSS_FLAGS,
                "swiglu_limit": fields.number("swiglu_limit", _SWIGLU_LIMIT),
                "swiglu_alpha": fields.number("swiglu_alpha", _SWIGLU_ALPHA),
            }
    return {}


def gguf_expert_flags(fields: GgufFields) -> Flags:
    """Return the same from the metadata of a GGUF file.

    Few files say whether the weights of chosen experts add up to 1. It follows from the architecture, as in llama.cpp:
    only those of OLMoE do not.
    """
    num_experts, is_gpt_oss = fields.integer("expert_count", 0), fields.architecture == "gpt-oss"
    if num_experts <= 0 and not is_gpt_oss:
        return {}
    if fields.architecture not in ("llama", "qwen3moe", "olmoe", "gpt-oss"):
        raise fields.unsupported(
            "holds a mixture of experts, which is supported for llama, qwen3moe, olmoe and gpt-oss only"
        )
    if fields.integer("expert_gating_func", 0) not in (*_SOFTMAX, *([_OF_CHOSEN] if is_gpt_oss else [])):
        raise fields.unsupported("chooses experts by another function than softmax, which is not supported")
    if fields.integer("expert_shared_count", 0) or fields.integer("leading_dense_block_count", 0):
        raise fields.unsupported("has experts that all tokens share or layers without experts, which are not supported")
    if fields.number("expert_weights_scale", 0.0) not in (0, 1):
        raise fields.unsupported("scales the weights of experts, which is not supported")
    normalizes = fields.flag("expert_weights_norm", fields.architecture != "olmoe")
    if is_gpt_oss and not normalizes:
        raise fields.unsupported("is of the kind gpt-oss, but the weights of chosen experts do not add up to 1")
    limits = {"swiglu_limit": _SWIGLU_LIMIT, "swiglu_alpha": _SWIGLU_ALPHA}
    return {
        **(_GPT_OSS_FLAGS | limits if is_gpt_oss else {}),
        **_flags(num_experts, fields.integer("expert_used_count"), normalizes=normalizes),
        "intermediate_size": fields.integer("expert_feed_forward_length", fields.integer("feed_forward_length")),
        "query_key_norm_spans_heads": fields.architecture == "olmoe",
    }


def huggingface_expert_names(architecture: str, shapes: Shapes) -> TensorNames:
    """Return the names of the tensors of routers and experts; none for a model without."""
    if architecture not in _OWN_NAMES:
        return {}
    is_stacked = architecture != GPT_OSS and _STACKED_NAMES["gate"].format(0) in shapes
    return _STACKED_NAMES if is_stacked else _OWN_NAMES[architecture]


def gguf_expert_names(config: ModelConfig) -> TensorNames:
    """Return the same for GGUF files."""
    return _GGUF_NAMES if config.num_experts else {}


def as_matrices(shapes: Shapes, num_experts: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes with stacked experts as matrices, [experts, rows, inputs] as [experts * rows, inputs].

    Their biases, [experts, rows], are vectors then.
    """

    def is_stacked(name: str, shape: tuple[int, ...]) -> bool:
        num_dims = 3 if _STACKED.fullmatch(name) else 2 if _STACKED_BIAS.fullmatch(name) else 0
        return num_dims > 0 and len(shape) == num_dims and shape[0] == num_experts

    return {
        name: (shape[0] * shape[1], *shape[2:]) if is_stacked(name, shape) else shape for name, shape in shapes.items()
    }


def expert_parts(
    config: ModelConfig, names: TensorNames, layer: int, part: Callable[..., Part]
) -> dict[str, list[Part]]:
    """Return the tensors that make up the weights of a layer's router and experts, by their names in the layer.

    `part(word, rows, width, layer=, expert=)` returns some rows of a tensor.
    """
    hidden, inner = config.hidden_size, config.intermediate_size
    shared = names["gate"].count("{}") == 1  # by the experts
    inner_step = inner * (2 if names["gate"] == names["up"] else 1) if shared else 0
    hidden_step = hidden if shared else 0

    def rows(expert: int, step: int, count: int) -> range:
        return range(expert * step, expert * step + count)

    parts = {"router.weight": [part("router", range(config.num_experts), hidden, layer=layer)]}
    for i in range(config.num_experts):
        parts[f"experts.{i}.gate_up.weight"] = [
            part(word, rows(i, inner_step, inner), hidden, layer=layer, expert=i) for word in ("gate", "up")
        ]
        parts[f"experts.{i}.down.weight"] = [part("down", rows(i, hidden_step, hidden), inner, layer=layer, expert=i)]
        if config.has_expert_bias:
            biases = (part(word, rows(i, inner_step, inner), layer=layer) for word in ("gate_bias", "up_bias"))
            parts[f"experts.{i}.gate_up.bias"] = [*biases]
            parts[f"experts.{i}.down.bias"] = [part("down_bias", rows(i, hidden_step, hidden), layer=layer)]
    if config.has_expert_bias:
        parts["router.bias"] = [part("router_bias", range(config.num_experts), layer=layer)]
    return parts


def num_read_parameters(config: ModelConfig, num_parameters: int, num_tokens: int) -> int:
    """Return how many of the parameters a step of that many tokens reads, if experts are chosen evenly.

    A token leaves an expert alone with the probability 1 - k / E, and n tokens with that to the power of n.
    """
    if not config.num_experts:
        return num_parameters
    hidden, inner = config.hidden_size, config.intermediate_size
    of_expert = 3 * hidden * inner + (2 * inner + hidden if config.has_expert_bias else 0)
    of_experts = config.num_layers * config.num_experts * of_expert
    unread = (1 - config.num_chosen_experts / config.num_experts) ** num_tokens
    return num_parameters - round(of_experts * unread)


def _flags(num_experts: int, num_chosen: int, *, normalizes: bool = True) -> Flags:
    if num_experts < 1:
        raise UnsupportedModel(f"A mixture of {num_experts} experts is not supported.")
    return {
        "num_experts": num_experts,
        "num_chosen_experts": num_chosen,
        "normalizes_expert_weights": normalizes,
    }


def _normalizes(fields: JsonFile) -> bool:
    return fields.flag("norm_topk_prob", False)
