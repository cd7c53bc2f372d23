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
from caravan.model.checkpoint import BrokenCheckpoint
from caravan.model.checkpoint.checkpoint import Checkpoint
from caravan.model.checkpoint.gguf_factors import factor_tensors, read_factors, scale_tensors, with_factor
from caravan.model.checkpoint.gguf_groups import GRID_BITS, read_groups
from caravan.model.checkpoint.gguf_header import GgufHeader, GgufTensor, read_gguf_header
from caravan.model.config import ModelConfig, UnsupportedModel
from caravan.model.quantization import GroupedWeight
from caravan.model.rope_scaling import DivisorScaling, LinearScaling, RopeScaling, YarnScaling

# Architectures, and whether converters leave the rows of Q and K interleaved (ggml's "norm" rope) for them.
_ARCHITECTURES = MappingProxyType({"llama": True, "mistral3": True, "qwen2": False, "qwen3": False})
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
        "feed_forward_norm": "blk.{}.ffn_norm.weight",
        "gate": "blk.{}.ffn_gate.weight",
        "up": "blk.{}.ffn_up.weight",
        "down": "blk.{}.ffn_down.weight",
    }
)
_TYPE_NAMES = ("F32", "F16", "BF16", *(kind for kind in BLOCK_SIZES if kind != NVFP4_WITH_FACTOR))
_TYPES = MappingProxyType({int(kind): kind for kind in map(gguf.GGMLQuantizationType.__getitem__, _TYPE_NAMES)})
_ROPE_FREQS = "rope_freqs.weight"  # one divisor for each rotary frequency
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

    def read(name: str, out: Tensor) -> None:
        _dequantize(holders[name], name, out)
        if name in factors:
            out.mul_(factors[name])  # without, they are exact in bfloat16

    def read_blocks(name: str) -> Tensor:
        stored = _stored(holders[name], name)
        return torch.from_numpy(with_factor(stored, factors[name]) if name in factors else stored)

    def read_grid(name: str) -> GroupedWeight | None:
        return read_groups(_stored(holders[name], name), kinds[name])

    kinds = {name: _TYPES[header.tensors[name].type_number] for name, header in holders.items()}
    shapes = {name: header.tensors[name].shape for name, header in holders.items()}
    factors: dict[str, float] = {}
    factors |= read_factors(path, factor_tensors(path, kinds, shapes), read)
    divisors: tuple[float, ...] = ()
    if _ROPE_FREQS in shapes:
        if len(shapes[_ROPE_FREQS]) != 1 or not 1 <= shapes[_ROPE_FREQS][0] <= 4096:
            raise BrokenCheckpoint(f"{path}: {_ROPE_FREQS} has the shape {list(shapes[_ROPE_FREQS])}.")
        values = torch.empty(shapes[_ROPE_FREQS], dtype=torch.float64)
        read(_ROPE_FREQS, values)
        divisors = tuple(values.tolist())
    config = _config(headers[0], shapes, divisors)
    return Checkpoint(
        path=path,
        format="GGUF",
        config=config,
        names=_NAMES,
        is_interleaved=_ARCHITECTURES[str(headers[0].metadata["general.architecture"])],
        shapes=shapes,
        stored_types=frozenset(kind.name for kind in kinds.values()),
        read=read,
        grids={name: GRID_BITS[kind] for name, kind in kinds.items() if kind in GRID_BITS},
        read_grid=read_grid,
        blocks={name: kind.name for name, kind in kinds.items() if kind.name in BLOCK_SIZES}
        | dict.fromkeys(factors, NVFP4_WITH_FACTOR),
        read_blocks=read_blocks,
        unused=frozenset({_ROPE_FREQS}) | scale_tensors(kinds),
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


def _config(header: GgufHeader, shapes: Mapping[str, tuple[int, ...]], divisors: tuple[float, ...]) -> ModelConfig:
    """Return the architecture that the metadata describe. Source of keys and defaults: ggml's docs/gguf.md."""
    fields = _Fields(header)
    num_heads = fields.integer("attention.head_count")
    hidden_size = fields.integer("embedding_length")
    head_dim = fields.integer("attention.key_length", hidden_size // max(num_heads, 1))
    for key in ("attention.value_length", "rope.dimension_count"):
        if fields.integer(key, head_dim) != head_dim:
            raise UnsupportedModel(f"{header.path}: {key} is {fields.integer(key)}; it must be head_dim, {head_dim}.")
    if fields.integer("expert_count", 0) > 0:
        raise UnsupportedModel(f"{header.path} holds a mixture of experts; only dense models are supported.")
    if fields.number("attention.temperature_scale", 0.0) != 0:
        raise UnsupportedModel(f"{header.path} scales attention by position, which is not supported.")
    tokens = header.metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list):
        raise BrokenCheckpoint(f"{header.path} has no vocabulary (tokenizer.ggml.tokens).")
    max_position = fields.integer("context_length")
    return ModelConfig(
        vocab_size=len(tokens),
        hidden_size=hidden_size,
        intermediate_size=fields.integer("feed_forward_length"),
        num_layers=fields.integer("block_count"),
        num_heads=num_heads,
        num_kv_heads=fields.integer("attention.head_count_kv", num_heads),
        head_dim=head_dim,
        max_position=max_position,
        rope_theta=fields.number("rope.freq_base", 10_000.0),
        rope_scaling=_rope_scaling(fields, divisors, head_dim, max_position),
        rms_norm_eps=fields.number("attention.layer_norm_rms_epsilon"),
        tie_embeddings=_NAMES["output"] not in shapes,
        has_qkv_bias=_has_all(shapes, "q_bias", "k_bias", "v_bias"),
        has_output_bias=_has_all(shapes, "attention_output_bias"),
        has_query_key_norm=_has_all(shapes, "query_norm", "key_norm"),
        sliding_window=fields.integer("attention.sliding_window", 0) or None,
    )


def _has_all(shapes: Mapping[str, tuple[int, ...]], *words: str) -> bool:
    return all(_NAMES[word].format(0) in shapes for word in words)


def _rope_scaling(
    fields: "_Fields", divisors: tuple[float, ...], head_dim: int, max_position: int
) -> RopeScaling | None:
    kind = fields.text("rope.scaling.type", "none")
    if divisors and kind != "none":
        raise fields.unsupported(f"has {_ROPE_FREQS} and scales its rotary embeddings by {ascii(kind)[:40]}, too")
    if divisors:
        if len(divisors) != head_dim // 2 or min(divisors) <= 0:
            raise fields.broken(f"{_ROPE_FREQS} must have head_dim / 2 positive numbers")
        return DivisorScaling(divisors=divisors)
    factor = fields.number("rope.scaling.factor", 1.0)
    if factor <= 0:
        raise fields.broken(f"rope.scaling.factor is {factor}; it must be positive")
    match kind:
        case "none":
            return None
        case "linear":
            return LinearScaling(factor=factor)
        case "yarn":
            if fields.number("rope.scaling.yarn_log_multiplier", 0.0) or (
                fields.number("rope.scaling.yarn_ext_factor", 1.0) != 1.0
            ):
                raise fields.unsupported("uses a form of YaRN that is not supported")
            attention = fields.number("rope.scaling.attn_factor", 1.0)
            attention *= fields.number("rope.scaling.yarn_attn_factor", 1.0)
            return YarnScaling(
                factor=factor,
                original_max_position=fields.integer("rope.scaling.original_context_length", max_position),
                beta_fast=fields.number("rope.scaling.yarn_beta_fast", 32.0),
                beta_slow=fields.number("rope.scaling.yarn_beta_slow", 1.0),
                attention_factor=attention * (0.1 * math.log(max(factor, 1.0)) + 1),
            )
    raise fields.unsupported(f"scales its rotary embeddings by {ascii(kind)[:40]}; supported are linear and yarn")


class _Fields:
    """Typed access to the metadata of the architecture; without a default a field must be there."""

    def __init__(self, header: GgufHeader) -> None:
        architecture = header.metadata.get("general.architecture")
        if architecture not in _ARCHITECTURES:
            supported = ", ".join(_ARCHITECTURES)
            raise UnsupportedModel(
                f"{header.path} is a model of kind {ascii(architecture)[:80]}; supported are {supported}."
            )
        self._path = header.path
        self._prefix = f"{architecture}."
        self._metadata = header.metadata

    def integer(self, key: str, default: int | None = None) -> int:
        value = self._metadata.get(self._prefix + key, default)
        if not isinstance(value, int) or isinstance(value, bool):
            raise self._wrong(key, value, "a whole number")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self._metadata.get(self._prefix + key, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
            raise self._wrong(key, value, "a number")
        return float(value)

    def text(self, key: str, default: str) -> str:
        value = self._metadata.get(self._prefix + key, default)
        if not isinstance(value, str):
            raise self._wrong(key, value, "a text")
        return value

    def broken(self, fact: str) -> BrokenCheckpoint:
        return BrokenCheckpoint(f"{self._path}: {fact}.")

    def unsupported(self, fact: str) -> UnsupportedModel:
        return UnsupportedModel(f"{self._path} {fact}.")

    def _wrong(self, key: str, value: object, kind: str) -> BrokenCheckpoint:
        return self.broken(f"{self._prefix}{key} is {ascii(value)[:24]}; it must be {kind}")


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
        supported = ", ".join(_TYPE_NAMES)
        raise UnsupportedModel(f"{header.path}: {name} has the type {shown}; supported are {supported}.")
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
    num_rows = math.prod(tensor.shape[:-1])
    num_bytes = _num_bytes(header, name, tensor)
    # Private rather than read-only, since torch has no tensors that cannot be written.
    return np.memmap(header.path, np.uint8, mode="c", offset=tensor.start, shape=(num_rows, num_bytes // num_rows))


def _dequantize(header: GgufHeader, name: str, out: Tensor) -> None:
    """Write the tensor's values into `out`, some rows at a time, in the file's own order."""
    tensor = header.tensors[name]
    kind = _TYPES[tensor.type_number]
    stored = _stored(header, name)
    num_rows = len(stored)
    out = out.view(num_rows, -1)
    step = max(_ROWS_AT_ONCE, _VALUES_AT_ONCE // out.shape[1])
    for start in range(0, num_rows, step):
        rows = stored[start : start + step]
        # The library works on 16 rows at a time; blocks do not depend on rows, so longer rows are possible, and faster.
        long_rows = rows.reshape(len(rows) // math.gcd(len(rows), _ROWS_AT_ONCE), -1)
        values = np.require(gguf.dequantize(long_rows, kind), np.float32, ["C", "W"])
        out[start : start + step] = torch.from_numpy(values).view(len(rows), -1)
