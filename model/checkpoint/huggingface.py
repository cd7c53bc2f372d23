"""Hugging Face folders: config.json and safetensors files."""

import logging
import math
import re
from pathlib import Path
from types import MappingProxyType

from gguf import GGMLQuantizationType
from safetensors import safe_open
from torch import Tensor

from caravan.model.checkpoint import BrokenCheckpoint
from caravan.model.checkpoint.checkpoint import Checkpoint
from caravan.model.checkpoint.gguf_groups import grid_bits, read_groups
from caravan.model.checkpoint.json_file import JsonFile, log_disagreement
from caravan.model.checkpoint.quantized_tensors import method_of, quantization_config, quantized_tensors
from caravan.model.checkpoint.safetensors_files import check_types, log_other_holders, tensors_of, weight_files
from caravan.model.config import ModelConfig, UnsupportedModel
from caravan.model.quantization import GroupedWeight
from caravan.model.rope_scaling import DynamicScaling, LinearScaling, Llama3Scaling, RopeScaling, YarnScaling

_ARCHITECTURES = MappingProxyType(  # by model_type
    {
        "llama": "LlamaForCausalLM",
        "mistral": "MistralForCausalLM",
        "qwen2": "Qwen2ForCausalLM",
        "qwen3": "Qwen3ForCausalLM",
    }
)
_NAMES = MappingProxyType(
    {
        "embedding": "model.embed_tokens.weight",
        "norm": "model.norm.weight",
        "output": "lm_head.weight",
        "attention_norm": "model.layers.{}.input_layernorm.weight",
        "q": "model.layers.{}.self_attn.q_proj.weight",
        "k": "model.layers.{}.self_attn.k_proj.weight",
        "v": "model.layers.{}.self_attn.v_proj.weight",
        "q_bias": "model.layers.{}.self_attn.q_proj.bias",
        "k_bias": "model.layers.{}.self_attn.k_proj.bias",
        "v_bias": "model.layers.{}.self_attn.v_proj.bias",
        "query_norm": "model.layers.{}.self_attn.q_norm.weight",
        "key_norm": "model.layers.{}.self_attn.k_norm.weight",
        "attention_output": "model.layers.{}.self_attn.o_proj.weight",
        "attention_output_bias": "model.layers.{}.self_attn.o_proj.bias",
        "feed_forward_norm": "model.layers.{}.post_attention_layernorm.weight",
        "gate": "model.layers.{}.mlp.gate_proj.weight",
        "up": "model.layers.{}.mlp.up_proj.weight",
        "down": "model.layers.{}.mlp.down_proj.weight",
    }
)
# A table of older versions, in various places; scales of a KV cache in float8, while ours is in bfloat16.
_UNUSED = re.compile(r"rotary_emb\.inv_freq|self_attn\.(k_proj\.k|v_proj\.v|k|v)_scale$")

logger = logging.getLogger(__name__)


def open_huggingface(folder: Path) -> Checkpoint:
    """Return the model in a folder with a config.json; raises OSError, BrokenCheckpoint or UnsupportedModel."""
    fields = JsonFile(folder / "config.json")
    quantization = quantization_config(folder, fields)
    files, indexed = weight_files(folder)
    holders: dict[str, Path] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    types: dict[str, str] = {}
    for file in files:
        for name, (shape, stored_type) in tensors_of(file).items():
            if name in holders:
                raise BrokenCheckpoint(f"{file}: {ascii(name)[:80]} is in {holders[name].name}, too.")
            holders[name], shapes[name], types[name] = file, shape, stored_type
    log_other_holders(folder, indexed, holders)

    def load(name: str) -> Tensor:
        with safe_open(holders[name], framework="pt") as content:
            tensor: Tensor = content.get_tensor(name)
            return tensor

    quantized = {} if quantization is None else quantized_tensors(quantization, shapes, types, load)
    sources = {source for tensor in quantized.values() for source in tensor.sources}
    plain = {name: shape for name, shape in shapes.items() if name not in sources}
    check_types({name: types[name] for name in plain}, holders)

    def read(name: str, out: Tensor) -> None:
        out.copy_(quantized[name].widen() if name in quantized else load(name))

    def read_blocks(name: str) -> Tensor:
        blocks = quantized[name].blocks
        assert blocks is not None, "a tensor without a kind"
        return blocks()

    def read_grid(name: str) -> GroupedWeight | None:
        return read_groups(read_blocks(name).numpy(), GGMLQuantizationType[kinds[name]])

    kinds = {name: tensor.kind for name, tensor in quantized.items() if tensor.kind is not None}

    return Checkpoint(
        path=folder,
        format="Hugging Face" if quantization is None else f"Hugging Face, quantized by {method_of(quantization)}",
        config=_config(fields, has_output="lm_head.weight" in plain or "lm_head.weight" in quantized),
        names=_NAMES,
        is_interleaved=False,
        shapes=plain | {name: tensor.shape for name, tensor in quantized.items()},
        stored_types=frozenset(types.values()),
        read=read,
        grids={name: bits for name, kind in kinds.items() if (bits := grid_bits(kind)) is not None},
        read_grid=read_grid,
        blocks=kinds,
        read_blocks=read_blocks,
        unused=frozenset(filter(_UNUSED.search, plain)),
    )


def _config(fields: JsonFile, *, has_output: bool) -> ModelConfig:
    architecture = _architecture(fields)
    is_tied = fields.flag("tie_word_embeddings", False)
    if not has_output and not is_tied:
        raise BrokenCheckpoint(
            f"{fields.path.parent} has no lm_head.weight, though config.json says tie_word_embeddings: false or leaves "
            "it out, which means the same. Fetch the weights again, or say true if the embeddings are the output head."
        )
    if has_output and is_tied:
        logger.warning(
            "%s has tie_word_embeddings: true, but the files have lm_head.weight, which is used.", fields.path
        )
    is_qwen2, is_qwen3 = architecture == "Qwen2ForCausalLM", architecture == "Qwen3ForCausalLM"
    has_attention_bias = not is_qwen2 and fields.flag("attention_bias", False)
    if fields.flag("mlp_bias", False):
        raise UnsupportedModel(f"{fields.path} has biases in the feed-forward network, which are not supported.")
    if fields.text("hidden_act", "silu") != "silu":
        raise UnsupportedModel(f"{fields.path} has the activation {fields.text('hidden_act')}; only silu is supported.")
    num_heads = fields.integer("num_attention_heads")
    hidden_size = fields.integer("hidden_size")
    rope = _rope(fields)
    scaling, max_position = _rope_scaling(rope, fields.integer("max_position_embeddings"))
    theta = rope.number("rope_theta") if rope is not None and "rope_theta" in rope else None
    sliding_window, num_full_layers = _sliding_window(fields, architecture)
    return ModelConfig(
        vocab_size=fields.integer("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=fields.integer("intermediate_size"),
        num_layers=fields.integer("num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=fields.integer("num_key_value_heads", num_heads),
        head_dim=fields.integer("head_dim", 128 if is_qwen3 else hidden_size // max(num_heads, 1)),
        max_position=max_position,
        rope_theta=theta or fields.number("rope_theta", 10_000.0),
        rope_scaling=scaling,
        rms_norm_eps=fields.number("rms_norm_eps", 1e-6),
        tie_embeddings=not has_output,
        has_qkv_bias=is_qwen2 or has_attention_bias,
        has_output_bias=has_attention_bias,
        has_query_key_norm=is_qwen3,
        sliding_window=sliding_window,
        num_full_layers=num_full_layers,
    )


def _architecture(fields: JsonFile) -> str:
    """Return the architecture from model_type, or from architectures if model_type is missing."""
    architectures, model_type = fields.items("architectures"), fields.text("model_type", "")
    stated = architectures[0] if architectures else None
    if stated is not None and stated not in _ARCHITECTURES.values():
        raise UnsupportedModel(
            f"{fields.path} describes {ascii(stated)[:80]}; supported are {', '.join(_ARCHITECTURES.values())}."
        )
    if not model_type and stated is not None:
        return str(stated)
    if model_type not in _ARCHITECTURES:
        raise UnsupportedModel(
            f"{fields.path} describes {ascii(stated)[:80]} with the model_type {ascii(model_type)[:80]}; supported are "
            f"{', '.join(_ARCHITECTURES)}."
        )
    if stated not in (None, _ARCHITECTURES[model_type]):
        log_disagreement(f"model_type in {fields.path}", model_type, "architectures there", stated)
    return _ARCHITECTURES[model_type]


def _rope(fields: JsonFile) -> JsonFile | None:
    """Return the rotary parameters: the older rope_scaling replaces rope_parameters as a whole."""
    newer, older = fields.part("rope_parameters"), fields.part("rope_scaling")
    if older is not None and older.raw() and newer is not None and newer.raw() != older.raw():
        log_disagreement(f"rope_scaling in {fields.path}", older.raw(), "rope_parameters there", newer.raw())
    chosen = older if older is not None and older.raw() else newer
    if chosen is not None and "rope_theta" in chosen and "rope_theta" in fields:
        theta, other = chosen.number("rope_theta"), fields.number("rope_theta")
        if theta != other:
            log_disagreement(f"rope_theta among the RoPE parameters of {fields.path}", theta, "that beside them", other)
    if fields.number("partial_rotary_factor", 1.0) != 1.0:
        raise UnsupportedModel(f"{fields.path} rotates only a part of each head, which is not supported.")
    return chosen


def _sliding_window(fields: JsonFile, architecture: str) -> tuple[int | None, int]:
    """Return the window in tokens, and how many first layers have full attention. Defaults: as in transformers."""
    if architecture == "MistralForCausalLM":
        has_window = "sliding_window" in fields or "sliding_window" not in fields.raw()  # null: none
        return (fields.integer("sliding_window", 4096) if has_window else None), 0
    if architecture == "LlamaForCausalLM" or not fields.flag("use_sliding_window", False):
        return None, 0
    num_layers = fields.integer("num_hidden_layers")
    num_full = min(fields.integer("max_window_layers", 28), num_layers)
    kinds = fields.items("layer_types")
    if kinds and kinds != ["full_attention"] * num_full + ["sliding_attention"] * (num_layers - num_full):
        raise UnsupportedModel(
            f"{fields.path} mixes layers with and without a window in an order that is not supported."
        )
    return fields.integer("sliding_window", 4096), num_full


def _rope_scaling(rope: JsonFile | None, max_position: int) -> tuple[RopeScaling | None, int]:
    """Return the scaling and its maximum context, in tokens."""
    if rope is None:
        return None, max_position
    if rope.number("partial_rotary_factor", 1.0) != 1.0:
        raise UnsupportedModel(f"{rope.path} rotates only a part of each head, which is not supported.")
    kind = rope.text("rope_type", rope.text("type", "default"))
    if kind == "default":
        return None, max_position
    original = rope.integer("original_max_position_embeddings", max_position)
    factor = rope.number("factor", max_position / max(original, 1))
    if factor <= 0 or original < 1:
        raise BrokenCheckpoint(f"{rope.path}: the factor and original length of a RoPE scaling must be positive.")
    longest = max(max_position, int(original * factor))
    match kind:
        case "linear":
            return LinearScaling(factor=factor), max_position
        case "dynamic":
            return DynamicScaling(factor=factor, original_max_position=max_position), int(max_position * factor)
        case "llama3":
            low, high = rope.number("low_freq_factor"), rope.number("high_freq_factor")
            if not 0 < low < high:
                raise BrokenCheckpoint(f"{rope.path}: low_freq_factor must be positive and below high_freq_factor.")
            scaling = Llama3Scaling(
                factor=factor, low_freq_factor=low, high_freq_factor=high, original_max_position=original
            )
            return scaling, max_position
        case "yarn":
            return _yarn(rope, factor, original), longest
    raise UnsupportedModel(
        f"{rope.path} scales its rotary embeddings by {ascii(kind)[:40]}; supported are linear, dynamic, llama3, yarn."
    )


def _yarn(rope: JsonFile, factor: float, original: int) -> YarnScaling:
    attention: float | None = None
    if "attention_factor" in rope:
        attention = rope.number("attention_factor")
    elif "mscale" in rope and "mscale_all_dim" in rope and rope.number("mscale_all_dim"):
        logarithm = 0.1 * math.log(max(factor, 1.0))
        attention = (rope.number("mscale") * logarithm + 1) / (rope.number("mscale_all_dim") * logarithm + 1)
    return YarnScaling(
        factor=factor,
        original_max_position=original,
        beta_fast=rope.number("beta_fast", 32.0),
        beta_slow=rope.number("beta_slow", 1.0),
        attention_factor=attention,
        truncates=rope.flag("truncate", True),
    )
