"""Hugging Face folders: config.json and safetensors files."""

import functools
import logging
import re
from pathlib import Path
from types import MappingProxyType
from typing import Any

from gguf import GGMLQuantizationType
from safetensors import safe_open
from torch import Tensor

from caravan.model.checkpoint import ALL_ROWS, BrokenCheckpoint
from caravan.model.checkpoint.checkpoint import Checkpoint
from caravan.model.checkpoint.experts import (
    GPT_OSS,
    MIXTRAL,
    OLMOE,
    QWEN3_MOE,
    as_matrices,
    huggingface_expert_flags,
    huggingface_expert_names,
)
from caravan.model.checkpoint.file_type import main_type, type_without_blocks
from caravan.model.checkpoint.gguf_groups import grid_bits, heads_fit_float16, read_groups
from caravan.model.checkpoint.huggingface_rope import (
    GPT_OSS_ROPE,
    rope_fields,
    rope_scaling,
    rotary_dim,
    window_rope_theta,
)
from caravan.model.checkpoint.json_file import JsonFile, log_disagreement
from caravan.model.checkpoint.layer_lists import sliding_windows
from caravan.model.checkpoint.quantized_tensors import method_of, quantization_config, quantized_tensors
from caravan.model.checkpoint.relatives import RELATIVES, huggingface_names, relative_flags
from caravan.model.checkpoint.safetensors_files import check_types, log_other_holders, tensors_of, weight_files
from caravan.model.checkpoint.transposed_experts import transposed_experts
from caravan.model.config import ModelConfig, UnsupportedModel
from caravan.model.quantization import GroupedWeight

_TIED_BY_DEFAULT = ("SmolLM3ForCausalLM", "Gemma2ForCausalLM", "Gemma3ForCausalLM")
_HEAD_DIMS = MappingProxyType(  # where it is not hidden_size / num_attention_heads by default
    dict.fromkeys(("Qwen3ForCausalLM", "InternLM3ForCausalLM", "Ministral3ForCausalLM"), 128)
    | dict.fromkeys(("Gemma2ForCausalLM", "Gemma3ForCausalLM"), 256)
    | {GPT_OSS: 64}
)
_THETAS = MappingProxyType(
    {"SmolLM3ForCausalLM": 2e6, "Gemma3ForCausalLM": 1e6, "Olmo3ForCausalLM": 5e5, MIXTRAL: 1e6, GPT_OSS: 15e4}
)
_WITH_LARGE_EPS = (
    *("Olmo2ForCausalLM", "Olmo3ForCausalLM", "Phi3ForCausalLM", "Ministral3ForCausalLM"),
    *(MIXTRAL, OLMOE, GPT_OSS),
)
_ARCHITECTURES = MappingProxyType({each.model_type: each.class_name for each in RELATIVES})
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
        "attention_post_norm": "model.layers.{}.post_attention_layernorm.weight",
        "feed_forward_norm": "model.layers.{}.post_attention_layernorm.weight",
        "feed_forward_post_norm": "model.layers.{}.post_feedforward_layernorm.weight",
        "gate": "model.layers.{}.mlp.gate_proj.weight",
        "up": "model.layers.{}.mlp.up_proj.weight",
        "down": "model.layers.{}.mlp.down_proj.weight",
    }
)
_MAX_MAPPED = 64  # tensors; each thread reads from the four of a matrix
# A table of older versions, in various places; scales of a KV cache in float8, while ours is in bfloat16.
_UNUSED = re.compile(r"rotary_emb\.inv_freq|self_attn\.(k_proj\.k|v_proj\.v|k|v)_scale$")

logger = logging.getLogger(__name__)


def open_huggingface(folder: Path) -> Checkpoint:
    """Return the model in a folder with a config.json; raises OSError, BrokenCheckpoint or UnsupportedModel."""
    fields = JsonFile(folder / "config.json")
    architecture = _architecture(fields)
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

    @functools.lru_cache(_MAX_MAPPED)  # opening a file takes a millisecond, and a matrix is read in many parts
    def load(name: str) -> Tensor:
        """Return a tensor that is mapped for as long as it is used."""
        with safe_open(holders[name], framework="pt") as content:
            tensor: Tensor = content.get_tensor(name)
            return tensor

    quantized = {} if quantization is None else quantized_tensors(quantization, shapes, types, load)
    sources = {source for tensor in quantized.values() for source in tensor.sources}
    plain = {name: shape for name, shape in shapes.items() if name not in sources}
    check_types({name: types[name] for name in plain}, holders)
    # What the files have in another form than as rows of numbers.
    stored = quantized | (transposed_experts(plain, load) if architecture == GPT_OSS else {})

    def read(name: str, out: Tensor, rows: slice = ALL_ROWS) -> None:
        if name in stored:
            stored[name].read(out, rows)
        else:
            out.copy_(load(name).reshape(-1, *out.shape[1:])[rows])

    def read_blocks(name: str, rows: slice = ALL_ROWS) -> Tensor:
        return blocks[name].read(rows)

    @functools.cache
    def has_grid(name: str) -> bool:
        kind = GGMLQuantizationType[blocks[name].kind]
        return all(heads_fit_float16(heads.numpy(), kind) for heads in blocks[name].all_heads())

    def read_grid(name: str, rows: slice = ALL_ROWS) -> GroupedWeight | None:
        kind = GGMLQuantizationType[blocks[name].kind]
        return read_groups(read_blocks(name, rows).numpy(), kind) if has_grid(name) else None

    blocks = {name: tensor.blocks for name, tensor in quantized.items() if tensor.blocks is not None}
    kinds = {name: some.kind for name, some in blocks.items()}

    method = "" if quantization is None else method_of(quantization)
    config = huggingface_config(
        fields, architecture, has_output="lm_head.weight" in plain or "lm_head.weight" in quantized
    )
    plain = as_matrices(plain, config.num_experts)
    shapes_of_all = plain | {name: tensor.shape for name, tensor in stored.items()}
    types_of_all = {name: types[name] for name in plain}
    for name, tensor in quantized.items():
        types_of_all[name] = kinds.get(name) or type_without_blocks(types[tensor.sources[0]], method)
    return Checkpoint(
        path=folder,
        format=f"Hugging Face, quantized by {method}" if method else "Hugging Face",
        architecture=architecture,
        config=config,
        added_to_norms=1.0 if architecture.startswith("Gemma") else 0.0,
        names={**_NAMES, **huggingface_names(architecture), **huggingface_expert_names(architecture, plain)},
        is_interleaved=False,
        interleaves_gate_up=architecture == GPT_OSS,
        shapes=shapes_of_all,
        stored_types=frozenset(types.values()),
        file_type=main_type(shapes_of_all, types_of_all),
        read=read,
        grids={name: bits for name, kind in kinds.items() if (bits := grid_bits(kind)) is not None},
        read_grid=read_grid,
        blocks=kinds,
        read_blocks=read_blocks,
        unused=frozenset(filter(_UNUSED.search, plain)),
    )


def huggingface_config(fields: JsonFile, architecture: str, *, has_output: bool) -> ModelConfig:
    """Return what a config.json describes; raises BrokenCheckpoint or UnsupportedModel.

    has_output: the files have an output head of its own.
    """
    is_tied = fields.flag("tie_word_embeddings", architecture in _TIED_BY_DEFAULT)
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
    has_attention_bias = not is_qwen2 and fields.flag("attention_bias", architecture == GPT_OSS)
    if fields.flag("mlp_bias", False):
        raise UnsupportedModel(f"{fields.path} has biases in the feed-forward network, which are not supported.")
    is_gemma = architecture.startswith("Gemma")
    key, supported = ("hidden_activation", "gelu_pytorch_tanh") if is_gemma else ("hidden_act", "silu")
    if (activation := fields.text(key, supported)) != supported:
        raise UnsupportedModel(f"{fields.path} has the activation {activation}; only {supported} is supported.")
    num_heads = fields.integer("num_attention_heads")
    hidden_size = fields.integer("hidden_size")
    rope = rope_fields(fields) or (JsonFile(fields.path, dict(GPT_OSS_ROPE)) if architecture == GPT_OSS else None)
    scaling, max_position = rope_scaling(fields, rope, architecture)
    theta = rope.number("rope_theta") if rope is not None and "rope_theta" in rope else None
    head_dim = fields.integer("head_dim", _HEAD_DIMS.get(architecture, hidden_size // max(num_heads, 1)))
    sliding_window, full_layers = sliding_windows(fields, architecture)
    flags: dict[str, Any] = {
        "intermediate_size": fields.integer("intermediate_size", 6144 if architecture == QWEN3_MOE else None),
        "rms_norm_eps": fields.number("rms_norm_eps", 1e-5 if architecture in _WITH_LARGE_EPS else 1e-6),
        "has_query_key_norm": is_qwen3,
        **relative_flags(architecture, fields),
        **huggingface_expert_flags(architecture, fields),
    }
    return ModelConfig(
        vocab_size=fields.integer("vocab_size"),
        hidden_size=hidden_size,
        num_layers=fields.integer("num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=fields.integer("num_key_value_heads", num_heads),
        head_dim=head_dim,
        max_position=max_position,
        rope_theta=theta or fields.number("rope_theta", _THETAS.get(architecture, 10_000.0)),
        window_rope_theta=window_rope_theta(fields, architecture),
        rope_scaling=scaling,
        rotary_dim=rotary_dim(fields, rope, architecture, head_dim),
        tie_embeddings=not has_output,
        has_qkv_bias=is_qwen2 or has_attention_bias,
        has_output_bias=has_attention_bias,
        sliding_window=sliding_window,
        full_layers=full_layers,
        **flags,
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
