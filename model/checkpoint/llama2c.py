"""llama2.c checkpoints: a .bin file with a header and then all weights in a fixed order.

Source of the layouts: export.py and run.c of llama2.c, versions 0 (its first, without a magic number), 1 and 2.
"""

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from caravan.model.checkpoint import ALL_ROWS, BrokenCheckpoint
from caravan.model.checkpoint.checkpoint import Checkpoint
from caravan.model.checkpoint.meta import NAMES
from caravan.model.config import ModelConfig, UnsupportedModel

_MAGIC = 0x616B3432  # "ak42"
_HEADER_BYTES = 256  # of versions 1 and 2
_MATRICES = ("q", "k", "v", "attention_output", "gate", "down", "up")


@dataclass(frozen=True)
class _Header:
    version: int
    config: ModelConfig
    num_bytes: int
    group_size: int = 0  # int8 weights that share a scale, in version 2


@dataclass(frozen=True)
class _Place:
    """The place of a tensor, and of its scales if it is int8."""

    shape: tuple[int, ...]
    start: int
    scales_start: int | None = None


def open_llama2c(path: Path) -> Checkpoint:
    """Return the model in a .bin file; raises OSError, BrokenCheckpoint or UnsupportedModel."""
    num_file_bytes = path.stat().st_size
    with path.open("rb") as file:
        header = _header(path, file.read(_HEADER_BYTES))
    if header.config.num_layers * header.config.hidden_size > num_file_bytes:  # before a list of that length is made
        raise BrokenCheckpoint(f"{path} is not a llama2.c checkpoint, or is cut off: it is too short for its layers.")
    places: dict[str, _Place] = {}
    end = header.num_bytes
    for name, shape, is_quantized in _order(header):
        num_values = math.prod(shape)
        if is_quantized:
            if num_values % header.group_size:
                raise BrokenCheckpoint(f"{path}: groups of {header.group_size} do not fit {name}.")
            places[name] = _Place(shape, end, end + num_values)
            end += num_values + 4 * (num_values // header.group_size)
        else:
            places[name] = _Place(shape, end)
            end += 4 * num_values
    if end != num_file_bytes:
        raise BrokenCheckpoint(
            f"{path} has {num_file_bytes} bytes; by its header, a llama2.c checkpoint of version {header.version}, it "
            f"should have {end}. Fetch it again."
        )

    def read(name: str, out: Tensor, rows: slice = ALL_ROWS) -> None:
        place = places[name]
        row_values = math.prod(place.shape[1:])
        first, end = (row * row_values for row in rows.indices(place.shape[0])[:2])  # values
        if place.scales_start is None:
            values = np.fromfile(path, "<f4", end - first, offset=place.start + 4 * first)
            out.copy_(torch.from_numpy(values).view(out.shape))
            return
        size = header.group_size
        first_group, end_group = first // size, -(-end // size)  # groups need not be in one row
        num_groups = end_group - first_group
        integers = np.fromfile(path, np.int8, num_groups * size, offset=place.start + first_group * size)
        scales = np.fromfile(path, "<f4", num_groups, offset=place.scales_start + 4 * first_group)
        values = (integers.reshape(num_groups, size).astype(np.float32) * scales[:, None]).reshape(-1)
        out.copy_(torch.from_numpy(values[first - first_group * size :][: end - first]).view(out.shape))

    tables = {name for name in places if name.startswith("freqs_")}
    return Checkpoint(
        path=path,
        files=(path,),
        format=f"llama2.c version {header.version}",
        architecture="Llama",
        config=header.config,
        names=NAMES,
        is_interleaved=True,
        shapes={name: place.shape for name, place in places.items()},
        stored_types=frozenset({"F32", "INT8"} if header.version == 2 else {"F32"}),
        file_type="Q8_0" if header.version == 2 else "F32",
        read=read,
        unused=frozenset(tables),
    )


def _header(path: Path, first: bytes) -> _Header:
    if len(first) < 28:
        raise BrokenCheckpoint(f"{path} is too short for a llama2.c checkpoint.")
    version, start = 0, 0
    if struct.unpack_from("<I", first)[0] == _MAGIC:
        (version,) = struct.unpack_from("<i", first, 4)
        start = 8
        if version not in (1, 2):
            raise UnsupportedModel(f"{path} is a llama2.c checkpoint of version {version}; supported are 0, 1 and 2.")
        if len(first) < _HEADER_BYTES:
            raise BrokenCheckpoint(f"{path} is too short for a llama2.c checkpoint.")
    hidden, inner, num_layers, num_heads, num_kv_heads, vocab_size, max_position = struct.unpack_from(
        "<7i", first, start
    )
    is_tied = vocab_size > 0  # in version 0 a negative size says that the head is not the embedding
    group_size = 0
    if version:
        is_tied = first[start + 28] != 0
        if version == 2:
            (group_size,) = struct.unpack_from("<i", first, start + 29)
            if group_size < 1:
                raise BrokenCheckpoint(f"{path}: its group size is {group_size}; it must be positive.")
    numbers = (hidden, inner, num_layers, num_heads, num_kv_heads, abs(vocab_size), max_position)
    if min(numbers) < 1 or hidden % num_heads:
        raise BrokenCheckpoint(
            f"{path} is not a llama2.c checkpoint: its header would describe {hidden} dimensions, {num_layers} layers, "
            f"{num_heads} heads and {vocab_size} tokens."
        )
    config = ModelConfig(
        vocab_size=abs(vocab_size),
        hidden_size=hidden,
        intermediate_size=inner,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=hidden // num_heads,
        max_position=max_position,
        tie_embeddings=is_tied,
    )
    return _Header(version, config, _HEADER_BYTES if version else 28, group_size)


def _order(header: _Header) -> Iterator[tuple[str, tuple[int, ...], bool]]:
    """Yield name, shape and whether it is quantized, for each tensor in the order of the file."""
    config = header.config
    hidden, inner = config.hidden_size, config.intermediate_size
    kv_rows = config.num_kv_heads * config.head_dim
    shapes = {
        "q": (hidden, hidden),
        "k": (kv_rows, hidden),
        "v": (kv_rows, hidden),
        "attention_output": (hidden, hidden),
        "gate": (inner, hidden),
        "down": (hidden, inner),
        "up": (inner, hidden),
    }
    is_quantized = header.version == 2
    embedding = (NAMES["embedding"], (config.vocab_size, hidden), is_quantized)
    norm: tuple[str, tuple[int, ...], bool] = (NAMES["norm"], (hidden,), False)

    def every_layer(word: str) -> Iterator[tuple[str, tuple[int, ...], bool]]:
        is_matrix = word in shapes
        for layer in range(config.num_layers):
            yield NAMES[word].format(layer), shapes.get(word, (hidden,)), is_quantized and is_matrix

    if header.version == 0:
        yield embedding
        yield from every_layer("attention_norm")
        for word in _MATRICES[:4]:
            yield from every_layer(word)
        yield from every_layer("feed_forward_norm")
        for word in _MATRICES[4:]:
            yield from every_layer(word)
        yield norm
        for table in ("freqs_cos", "freqs_sin"):
            yield table, (config.max_position, config.head_dim // 2), False
    else:
        yield from every_layer("attention_norm")
        yield from every_layer("feed_forward_norm")
        yield norm
        yield embedding
        for word in _MATRICES:
            yield from every_layer(word)
    if not config.tie_embeddings:
        yield NAMES["output"], (config.vocab_size, hidden), is_quantized
