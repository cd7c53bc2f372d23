"""GGUF files: the architecture from their metadata, and their tensors, dequantized."""

import itertools
import math
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import gguf
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from caravan.model.blocks import BLOCK_SIZES, NVFP4_WITH_FACTOR
from caravan.model.checkpoint import ALL_ROWS, BrokenCheckpoint
from caravan.model.checkpoint.checkpoint import Checkpoint
from caravan.model.checkpoint.experts import as_matrices, gguf_expert_flags, gguf_expert_names
from caravan.model.checkpoint.file_type import gguf_file_type
from caravan.model.checkpoint.gguf_factors import (
    factor_tensors,
    read_divisors,
    read_factors,
    unused_names,
    with_factor,
)
from caravan.model.checkpoint.gguf_fields import GgufFields
from caravan.model.checkpoint.gguf_groups import GRID_BITS, fits_float16, read_groups
from caravan.model.checkpoint.gguf_header import GgufHeader, GgufTensor, read_gguf_header
from caravan.model.checkpoint.gguf_rope import gguf_rope_scaling, window_rope_theta
from caravan.model.checkpoint.layer_lists import gguf_windows
from caravan.model.checkpoint.relatives import gguf_flags, gguf_names
from caravan.model.config import ModelConfig, UnsupportedModel
from caravan.model.quantization import GroupedWeight

# Architectures, and whether converters leave the rows of Q and K interleaved (ggml's "norm" rope) for them.
_ARCHITECTURES = MappingProxyType(
    {"llama": True, "mistral3": True, "qwen2": False, "qwen3": False, "smollm3": True, "granite": True}
    | {"olmo2": False, "phi3": False, "gemma2": False, "gemma3": False, "qwen3moe": False, "olmoe": False}
    | {"gpt-oss": False}
)
_NAMES = MappingProxyType(
    {
        "embedding": "token_embd.weight",
        "norm": "output_norm.weight",
        "output": "output.weight",
        "attention_norm": "blk.{}.attn_norm.weight",
        "q": "blk.{}.attn_q.weight",
        "k": "blk.{}.attn_k.weight",
        "v": "blk.{}.attn_v.weight",
        "q_bias": "blk.{}.attn_q.bias",
        "k_bias": "blk.{}.attn_k.bias",
        "v_bias": "blk.{}.attn_v.bias",
        "query_norm": "blk.{}.attn_q_norm.weight",
        "key_norm": "blk.{}.attn_k_norm.weight",
        "attention_output": "blk.{}.attn_output.weight",
        "attention_output_bias": "blk.{}.attn_output.bias",
        "attention_post_norm": "blk.{}.post_attention_norm.weight",
        "feed_forward_norm": "blk.{}.ffn_norm.weight",
        "feed_forward_post_norm": "blk.{}.post_ffw_norm.weight",
        "gate": "blk.{}.ffn_gate.weight",
        "up": "blk.{}.ffn_up.weight",
        "down": "blk.{}.ffn_down.weight",
    }
)
_TYPE_NAMES = ("F32", "F16", "BF16", *(kind for kind in BLOCK_SIZES if kind != NVFP4_WITH_FACTOR))
_TYPES = MappingProxyType({int(kind): kind for kind in map(gguf.GGMLQuantizationType.__getitem__, _TYPE_NAMES)})
_ROWS_AT_ONCE = 32
_VALUES_AT_ONCE = 2**21  # dequantized at a time, in float32
_MAX_SPLITS = 1000
_SPLIT_NAME = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)


def open_gguf(path: Path) -> Checkpoint:
    """Return the model in a GGUF file, or in the files it was split into if `path` is the first of them.

    Raises OSError, BrokenCheckpoint or UnsupportedModel.
    """
    headers = _split_headers(read_gguf_header(path))
    holders: dict[str, GgufHeader] = {}
    for header in headers:
        if twice := sorted(holders.keys() & header.tensors.keys()):
            raise BrokenCheckpoint(f"{header.path}: {twice[0]} is in another file of this model, too.")
        _check_extents(header)
        holders |= dict.fromkeys(header.tensors, header)

    def read(name: str, out: Tensor, rows: slice = ALL_ROWS) -> None:
        _dequantize(holders[name], name, out, rows)
        if name in factors:
            out.mul_(factors[name])  # without, they are exact in bfloat16

    def read_blocks(name: str, rows: slice = ALL_ROWS) -> Tensor:
        stored = _stored(holders[name], name)[rows]
        return torch.from_numpy(with_factor(stored, factors[name]) if name in factors else stored)

    def read_grid(name: str, rows: slice = ALL_ROWS) -> GroupedWeight | None:
        stored = _stored(holders[name], name)
        if name not in have_grid:
            have_grid[name] = fits_float16(stored, kinds[name])
        return read_groups(stored[rows], kinds[name]) if have_grid[name] else None

    kinds = {name: _TYPES[header.tensors[name].type_number] for name, header in holders.items()}
    shapes = {name: header.tensors[name].shape for name, header in holders.items()}
    have_grid, factors = dict[str, bool](), dict[str, float]()
    factors |= read_factors(path, factor_tensors(path, kinds, shapes), read)
    config = _config(headers[0], shapes, read_divisors(path, shapes, read))
    architecture = str(headers[0].metadata["general.architecture"])
    return Checkpoint(
        path=path,
        format="GGUF",
        architecture=architecture,
        config=config,
        names={**_NAMES, **gguf_names(architecture), **gguf_expert_names(config)},
        is_interleaved=_ARCHITECTURES[architecture],
        shapes=as_matrices(shapes, config.num_experts),
        stored_types=frozenset(kind.name for kind in kinds.values()),
        file_type=gguf_file_type(headers[0].metadata, shapes, kinds),
        read=read,
        grids={name: GRID_BITS[kind] for name, kind in kinds.items() if kind in GRID_BITS},
        read_grid=read_grid,
        blocks={name: kind.name for name, kind in kinds.items() if kind.name in BLOCK_SIZES}
        | dict.fromkeys(factors, NVFP4_WITH_FACTOR),
        read_blocks=read_blocks,
        unused=unused_names(kinds),
        files=tuple(header.path for header in headers),
    )


def _split_headers(first: GgufHeader) -> list[GgufHeader]:
    """Return the headers of all parts of a split model, given that of the first part."""
    count = first.metadata.get("split.count", 1)
    if not isinstance(count, int) or not 0 <= count <= _MAX_SPLITS:
        raise BrokenCheckpoint(f"{first.path}: split.count is {ascii(count)[:24]}; it must be from 0 to {_MAX_SPLITS}.")
    if count <= 1:
        return [first]
    named = _SPLIT_NAME.fullmatch(first.path.name)
    is_first = named is not None and int(named["number"]) == 1 and first.metadata.get("split.no") == 0
    if named is None or not is_first or int(named["count"]) != count:
        raise BrokenCheckpoint(
            f"{first.path} is one of {count} files. Give the first one, whose name ends in -00001-of-{count:05}.gguf."
        )
    headers = [first]
    for number in range(2, count + 1):
        header = read_gguf_header(first.path.with_name(f"{named['stem']}-{number:05}-of-{count:05}.gguf"))
        if header.metadata.get("split.no") != number - 1 or header.metadata.get("split.count") != count:
            raise BrokenCheckpoint(f"{header.path} is not file {number} of {count} of its model.")
        headers.append(header)
    expected = first.metadata.get("split.tensors.count")
    num_tensors = sum(len(header.tensors) for header in headers)
    if expected is not None and expected != num_tensors:
        raise BrokenCheckpoint(f"{first.path}: its files have {num_tensors} tensors; there should be {expected}.")
    return headers


def _config(
    header: GgufHeader, shapes: Mapping[str, tuple[int, ...]], divisors: Mapping[str, tuple[float, ...]]
) -> ModelConfig:
    """Return the architecture that the metadata describe. Source of keys and defaults: ggml's docs/gguf.md."""
    fields = GgufFields(header, _ARCHITECTURES)
    num_heads = fields.integer("attention.head_count")
    hidden_size = fields.integer("embedding_length")
    head_dim = fields.integer("attention.key_length", hidden_size // max(num_heads, 1))
    rotary_dim = fields.integer("rope.dimension_count", head_dim)
    for key in ("attention.value_length", *(() if fields.architecture == "phi3" else ("rope.dimension_count",))):
        if fields.integer(key, head_dim) != head_dim:
            raise UnsupportedModel(f"{header.path}: {key} is {fields.integer(key)}; it must be head_dim, {head_dim}.")
    if fields.architecture != "mistral3" and fields.number("attention.temperature_scale", 0.0) != 0:
        raise fields.unsupported("scales queries by their position, which is supported for mistral3 only")
    if fields.architecture == "granite" and header.metadata.get("granite.rope.scaling.finetuned") is False:
        raise fields.unsupported("has no RoPE in any layer, which is not supported")
    tokens = header.metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list):
        raise BrokenCheckpoint(f"{header.path} has no vocabulary (tokenizer.ggml.tokens).")
    max_position, num_layers = fields.integer("context_length"), fields.integer("block_count")
    theta = fields.number("rope.freq_base", 10_000.0)
    sliding_window, full_layers = gguf_windows(fields, num_layers)
    flags = {
        "intermediate_size": fields.integer("feed_forward_length"),
        "rms_norm_eps": fields.number("attention.layer_norm_rms_epsilon"),
        "has_query_key_norm": _has_all(shapes, "query_norm", "key_norm"),
        **gguf_flags(fields.architecture, header.path, fields.number, num_layers),
        **gguf_expert_flags(fields),
    }
    return ModelConfig(
        vocab_size=len(tokens),
        hidden_size=hidden_size,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=fields.integer("attention.head_count_kv", num_heads),
        head_dim=head_dim,
        max_position=max_position,
        rope_theta=theta,
        window_rope_theta=window_rope_theta(fields, theta) if sliding_window is not None else None,
        rope_scaling=gguf_rope_scaling(fields, divisors, rotary_dim, max_position),
        rotary_dim=None if rotary_dim == head_dim else rotary_dim,
        tie_embeddings=_NAMES["output"] not in shapes,
        has_qkv_bias=_has_all(shapes, "q_bias", "k_bias", "v_bias"),
        has_output_bias=_has_all(shapes, "attention_output_bias"),
        sliding_window=sliding_window,
        full_layers=full_layers,
        **flags,
    )


def _has_all(shapes: Mapping[str, tuple[int, ...]], *words: str) -> bool:
    return all(_NAMES[word].format(0) in shapes for word in words)


def _check_extents(header: GgufHeader) -> None:
    """Raise unless all tensors of the file are complete, separate, and of known types."""
    extents: list[tuple[int, int, str]] = []
    for name, tensor in header.tensors.items():
        end = tensor.start + _num_bytes(header, name, tensor)
        if end > header.num_file_bytes:
            raise BrokenCheckpoint(
                f"{header.path} is cut off: {name} ends at byte {end}, the file at {header.num_file_bytes}. "
                "Fetch it again."
            )
        extents.append((tensor.start, end, name))
    extents.sort()
    for (_, end, name), (start, _, other) in itertools.pairwise(extents):
        if start < end:
            raise BrokenCheckpoint(f"{header.path}: {name} and {other} overlap.")


def _num_bytes(header: GgufHeader, name: str, tensor: GgufTensor) -> int:
    if tensor.type_number not in _TYPES:
        try:
            shown = gguf.GGMLQuantizationType(tensor.type_number).name
        except ValueError:
            shown = str(tensor.type_number)
        raise UnsupportedModel(f"{header.path}: {name} has the type {shown}; supported are {', '.join(_TYPE_NAMES)}.")
    values_per_block, bytes_per_block = gguf.GGML_QUANT_SIZES[_TYPES[tensor.type_number]]
    if tensor.shape[-1] % values_per_block:
        raise BrokenCheckpoint(
            f"{header.path}: {name} has rows of {tensor.shape[-1]} values, not a multiple of {values_per_block}."
        )
    return math.prod(tensor.shape) // values_per_block * bytes_per_block


def _stored(header: GgufHeader, name: str) -> NDArray[np.uint8]:
    """Return the bytes of a tensor, [rows, bytes]; mapped for this tensor only, so that it does not stay in memory.

    A vector is one row: its blocks are longer than one of its numbers.
    """
    tensor = header.tensors[name]
    num_rows, num_bytes = math.prod(tensor.shape[:-1]), _num_bytes(header, name, tensor)
    # Private rather than read-only, since torch has no tensors that cannot be written.
    return np.memmap(header.path, np.uint8, mode="c", offset=tensor.start, shape=(num_rows, num_bytes // num_rows))


def _dequantize(header: GgufHeader, name: str, out: Tensor, wanted: slice) -> None:
    """Write the wanted rows of a tensor into `out`, some at a time, in the file's own order."""
    tensor = header.tensors[name]
    stored, kind = _stored(header, name), _TYPES[tensor.type_number]
    values_per_block, bytes_per_block = gguf.GGML_QUANT_SIZES[kind]
    if out.dim() == 1 and values_per_block == 1:  # a vector, also of the biases of all experts
        stored = stored.reshape(-1, bytes_per_block)
    elif out.dim() == 1 and out.numel() != math.prod(tensor.shape):  # its blocks are longer than one of its numbers
        whole = torch.empty(math.prod(tensor.shape))
        _dequantize(header, name, whole, ALL_ROWS)
        out.copy_(whole[wanted])
        return
    stored = stored[ALL_ROWS if out.dim() == 1 and values_per_block > 1 else wanted]
    out = out.view(len(stored), -1)
    step = max(_ROWS_AT_ONCE, _VALUES_AT_ONCE // out.shape[1])
    for start in range(0, len(stored), step):
        rows = stored[start : start + step]
        # The library works on 16 rows at a time; blocks do not depend on rows, so longer rows are possible, and faster.
        long_rows = rows.reshape(len(rows) // math.gcd(len(rows), _ROWS_AT_ONCE), -1)
        values = np.require(gguf.dequantize(long_rows, kind), np.float32, ["C", "W"])
        out[start : start + step] = torch.from_numpy(values).view(len(rows), -1)
