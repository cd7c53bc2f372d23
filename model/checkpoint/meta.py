"""Meta's own folders: params.json and consolidated.NN.pth, one file for each GPU of the original setup."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor

from caravan.model.checkpoint import ALL_ROWS, BrokenCheckpoint
from caravan.model.checkpoint.checkpoint import Checkpoint
from caravan.model.checkpoint.file_type import main_type
from caravan.model.checkpoint.json_file import JsonFile
from caravan.model.config import ModelConfig, UnsupportedModel
from caravan.model.rope_scaling import Llama3Scaling

NAMES = MappingProxyType(
    {
        "embedding": "tok_embeddings.weight",
        "norm": "norm.weight",
        "output": "output.weight",
        "attention_norm": "layers.{}.attention_norm.weight",
        "q": "layers.{}.attention.wq.weight",
        "k": "layers.{}.attention.wk.weight",
        "v": "layers.{}.attention.wv.weight",
        "attention_output": "layers.{}.attention.wo.weight",
        "feed_forward_norm": "layers.{}.ffn_norm.weight",
        "gate": "layers.{}.feed_forward.w1.weight",
        "up": "layers.{}.feed_forward.w3.weight",
        "down": "layers.{}.feed_forward.w2.weight",
    }
)
_SPLIT_BY_COLUMNS = re.compile(r"layers\.\d+\.(attention\.wo|feed_forward\.w2)\.weight")
_UNUSED = re.compile(r"(.*\.)?rope\.freqs")  # a table that is computed here
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_SHARD_NAME = re.compile(r"consolidated\.(\d+)\.pth")


def open_meta(folder: Path) -> Checkpoint:
    """Return the model in a folder with a params.json; raises OSError, BrokenCheckpoint or UnsupportedModel."""
    fields = JsonFile(folder / "params.json")
    shards = [_tensors(path) for path in _shard_paths(folder)]
    for number, shard in enumerate(shards):
        if different := sorted(shard.keys() ^ shards[0].keys()):
            raise BrokenCheckpoint(
                f"{folder}: shards 0 and {number} differ: {ascii(different[0])[:80]} is in one only."
            )
    hidden_size = fields.integer("dim")
    axes = {name: _axis(name, [shard[name] for shard in shards], hidden_size) for name in shards[0]}
    shapes = {name: _shape(folder, name, [shard[name] for shard in shards], axes[name]) for name in shards[0]}

    def read(name: str, out: Tensor, rows: slice = ALL_ROWS) -> None:
        axis = axes[name]
        if axis is None:
            out.copy_(shards[0][name][rows])
            return
        first, end, _ = rows.indices(shapes[name][0])
        start = 0  # of a shard, in rows or in columns
        for shard in shards:
            size = shard[name].shape[axis]
            if axis == 1:
                out.narrow(1, start, size).copy_(shard[name][rows])
            elif first < start + size and start < end:
                begin, stop = max(first, start), min(end, start + size)
                out[begin - first : stop - first] = shard[name][begin - start : stop - start]
            start += size

    types = {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in shards[0].items()}
    return Checkpoint(
        path=folder,
        format="Meta",
        architecture="Llama",
        config=_config(fields, shapes),
        names=NAMES,
        is_interleaved=True,
        shapes=shapes,
        stored_types=frozenset(types.values()),
        file_type=main_type(shapes, types),
        read=read,
        unused=frozenset(filter(_UNUSED.fullmatch, shapes)),
    )


def _shard_paths(folder: Path) -> list[Path]:
    found = {int(match[1]): path for path in folder.iterdir() if (match := _SHARD_NAME.fullmatch(path.name))}
    if not found:
        raise BrokenCheckpoint(f"{folder} has no consolidated.00.pth.")
    if missing := sorted(set(range(max(found) + 1)) - found.keys()):
        raise BrokenCheckpoint(f"{folder} lacks consolidated.{missing[0]:02}.pth. Fetch it again.")
    return [found[number] for number in sorted(found)]


def _tensors(path: Path) -> Mapping[str, Tensor]:
    """Return the tensors of a file, mapped from disk."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch.load raises many kinds, and the file may be anything
        reason = ascii(str(error).split("\n")[0])[1:-1][:120]
        raise BrokenCheckpoint(f"{path} is not a valid file of tensors: {reason}. Fetch it again.") from None
    if not isinstance(content, dict) or not content:
        raise BrokenCheckpoint(f"{path} does not hold named tensors.")
    for name, tensor in content.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor) or tensor.layout is not torch.strided:
            raise BrokenCheckpoint(f"{path}: {ascii(name)[:80]} is not a dense tensor.")
        if tensor.dtype not in _DTYPES:
            raise UnsupportedModel(
                f"{path}: {name} has the type {tensor.dtype}; supported are float32, float16 and bfloat16."
            )
        if tensor.numel() * tensor.itemsize > path.stat().st_size:
            raise BrokenCheckpoint(f"{path}: {ascii(name)[:80]} states more values than the file can hold.")
    return content


def _axis(name: str, parts: list[Tensor], hidden_size: int) -> int | None:
    """Return the dimension along which a tensor was split: 0 rows, 1 columns, None if each shard has all of it."""
    if len(parts) == 1 or parts[0].dim() < 2:
        return None
    if name == NAMES["embedding"]:  # Llama 2 splits its columns, Llama 3 its rows
        return 0 if parts[0].shape[1] == hidden_size else 1
    return 1 if _SPLIT_BY_COLUMNS.fullmatch(name) else 0


def _shape(folder: Path, name: str, parts: list[Tensor], axis: int | None) -> tuple[int, ...]:
    """Return the shape of the whole tensor, whose parts must be of equal shape."""
    shape = list(parts[0].shape)
    if any(list(part.shape) != shape for part in parts):
        raise BrokenCheckpoint(f"{folder}: the parts of {ascii(name)[:80]} in the shards have different shapes.")
    if axis is not None:
        shape[axis] *= len(parts)
    return tuple(shape)


def _config(fields: JsonFile, shapes: Mapping[str, tuple[int, ...]]) -> ModelConfig:
    """Return the architecture; what params.json leaves out is as in Meta's code (llama, llama-models)."""
    hidden_size, num_heads = fields.integer("dim"), fields.integer("n_heads")
    if "moe" in fields or "moe_args" in fields:
        raise UnsupportedModel(f"{fields.path} describes a mixture of experts; only dense models are supported.")
    if num_heads < 1 or hidden_size < 1:
        raise BrokenCheckpoint(f"{fields.path}: dim and n_heads must be positive.")
    vocab_size = fields.integer("vocab_size", -1)
    if vocab_size == -1:  # Llama 1 and 2: the size of the tokenizer
        vocab_size = (shapes.get(NAMES["embedding"]) or (0,))[0]
    return ModelConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=feed_forward_size(
            hidden_size, fields.integer("multiple_of", 256), fields.number("ffn_dim_multiplier", 1.0)
        ),
        num_layers=fields.integer("n_layers"),
        num_heads=num_heads,
        num_kv_heads=fields.integer("n_kv_heads", num_heads),
        head_dim=hidden_size // num_heads,
        max_position=_max_position(fields),
        rope_theta=fields.number("rope_theta", 10_000.0),
        rope_scaling=_rope_scaling(fields),
        rms_norm_eps=fields.number("norm_eps", 1e-5),
        tie_embeddings=NAMES["output"] not in shapes,
    )


def feed_forward_size(hidden_size: int, multiple_of: int, multiplier: float) -> int:
    """Return the width inside the feed-forward network: two thirds of 4 times the hidden size, rounded up.

    Two thirds, because SwiGLU has three matrices where others have two. Source: LLaMA (arXiv:2302.13971), section 2.2,
    and Meta's code for the multiplier of Llama 2 70B and Llama 3.
    """
    size = int(multiplier * (2 * 4 * hidden_size // 3))
    return math.ceil(size / max(multiple_of, 1)) * multiple_of


def _rope_scaling(fields: JsonFile) -> Llama3Scaling | None:
    if not fields.flag("use_scaled_rope", False):
        return None
    return Llama3Scaling(
        factor=fields.number("rope_scaling_factor", 8.0),
        low_freq_factor=1.0,
        high_freq_factor=fields.number("rope_high_freq_factor", 4.0),
        original_max_position=8192,
    )


def _max_position(fields: JsonFile) -> int:
    """Return the maximum context. params.json does not have it, so it follows from the model's generation."""
    if fields.flag("use_scaled_rope", False):
        return 131_072  # Llama 3.1 and later
    theta = fields.number("rope_theta", 10_000.0)
    if theta == 1_000_000.0:
        return 16_384  # Code Llama
    if theta > 10_000.0:
        return 8192  # Llama 3
    return 2048 if fields.number("norm_eps", 1e-5) < 5e-6 else 4096  # Llama 1 has 1e-6, Llama 2 has 1e-5
