"""Hugging Face folders: config.json and safetensors files."""

import logging
import math
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from safetensors import SafetensorError, safe_open
from torch import Tensor

from caravan.model.checkpoint import BrokenCheckpoint
from caravan.model.checkpoint.checkpoint import Checkpoint, listed
from caravan.model.checkpoint.json_file import JsonFile, log_disagreement
from caravan.model.config import ModelConfig, UnsupportedModel
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
_UNUSED = re.compile(r"rotary_emb\.inv_freq")  # a table of older versions, in various places
_DTYPES = ("F32", "F16", "BF16", "F64")
_MAX_TENSORS = 2**16

logger = logging.getLogger(__name__)


def open_huggingface(folder: Path) -> Checkpoint:
    """Return the model in a folder with a config.json; raises OSError, BrokenCheckpoint or UnsupportedModel."""
    fields = JsonFile(folder / "config.json")
    _refuse_quantized(fields)
    files, indexed = _files(folder)
    holders: dict[str, Path] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    stored_types: set[str] = set()
    for file in files:
        for name, (shape, stored_type) in _tensors(file).items():
            stored_types.add(stored_type)
            if name in holders:
                raise BrokenCheckpoint(f"{file}: {ascii(name)[:80]} is in {holders[name].name}, too.")
            holders[name], shapes[name] = file, shape
    _log_other_holders(folder, indexed, holders)

    def read(name: str, out: Tensor) -> None:
        with safe_open(holders[name], framework="pt") as content:
            out.copy_(content.get_tensor(name))

    return Checkpoint(
        path=folder,
        format="Hugging Face",
        config=_config(fields, has_output="lm_head.weight" in shapes),
        names=_NAMES,
        is_interleaved=False,
        shapes=shapes,
        stored_types=frozenset(stored_types),
        read=read,
        unused=frozenset(filter(_UNUSED.search, shapes)),
    )


def _files(folder: Path) -> tuple[list[Path], Mapping[str, object]]:
    """Return the safetensors files that make up the model, and which file has each tensor by the index."""
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if single.is_file():
        if index.is_file():
            logger.warning("%s has both %s and %s; the first one is used.", folder, single.name, index.name)
        return [single], {}
    if not index.is_file():
        if list(folder.glob("*.bin")):
            raise UnsupportedModel(
                f"{folder} has weights in .bin files; supported are safetensors. Convert them first."
            )
        raise BrokenCheckpoint(f"{folder} has no model.safetensors and no model.safetensors.index.json.")
    weight_map = JsonFile(index).part("weight_map")
    indexed = {} if weight_map is None else weight_map.raw()
    names = set(map(str, indexed.values()))
    if not names:
        raise BrokenCheckpoint(f"{index} names no files.")
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise BrokenCheckpoint(f"{index} names {ascii(name)[:80]}, which is not a safetensors file in its folder.")
        if not (folder / name).is_file():
            raise BrokenCheckpoint(f"{folder} lacks {name}, which its index names. Fetch it again.")
    return [folder / name for name in sorted(names)], indexed


def _log_other_holders(folder: Path, indexed: Mapping[str, object], holders: Mapping[str, Path]) -> None:
    """Log the tensors that are in other files than the index states; the files are used."""
    if not indexed:
        return
    other = [name for name, file in holders.items() if indexed.get(name) != file.name]
    other += [name for name in indexed if name not in holders]
    if other:
        logger.warning(
            "%s: the index is wrong about %s; what is in the files is used.", folder, listed([*dict.fromkeys(other)])
        )


def _tensors(file: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Return the shape and type of each tensor of a file, after checking that the file is complete."""
    tensors: dict[str, tuple[tuple[int, ...], str]] = {}
    try:
        with safe_open(file, framework="pt") as content:
            names = content.keys()
            if len(names) > _MAX_TENSORS:
                raise BrokenCheckpoint(f"{file} has {len(names)} tensors, more than {_MAX_TENSORS}.")
            for name in names:
                tensor = content.get_slice(name)
                if tensor.get_dtype() not in _DTYPES:
                    raise UnsupportedModel(
                        f"{file}: {ascii(name)[:80]} has the type {tensor.get_dtype()}; supported are "
                        f"{', '.join(_DTYPES)}. Take the model's original, or a GGUF file of it."
                    )
                tensors[name] = tuple(tensor.get_shape()), tensor.get_dtype()
    except SafetensorError as error:
        raise BrokenCheckpoint(
            f"{file} is not a valid safetensors file: {ascii(str(error))[1:-1][:120]}. Fetch it again."
        ) from None
    return tensors


def _refuse_quantized(fields: JsonFile) -> None:
    quantization = fields.part("quantization_config")
    if quantization is not None:
        method = ascii(quantization.text("quant_method", "an unknown method"))[1:-1][:40]
        raise UnsupportedModel(
            f"{fields.path.parent} has weights quantized by {method}, which is not supported. Take the model's "
            "original, or a GGUF file of it."
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
