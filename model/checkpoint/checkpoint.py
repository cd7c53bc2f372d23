"""Checkpoint: a model on disk whose weights are not read yet, and how its tensors become weights of the model."""

import math
import os
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from caravan.model.blocks import StoredRows, WeightPart
from caravan.model.checkpoint import BrokenCheckpoint
from caravan.model.config import ModelConfig, UnsupportedModel
from caravan.model.quantization import GroupedWeight

Weight = Tensor | GroupedWeight | list[WeightPart]
TensorNames = Mapping[str, str]  # kind of tensor -> its name in the files, with {} for the layer
_NUM_NAMED = 3  # tensors named in an error; the rest are counted


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What each format knows about its files."""

    path: Path
    format: str  # for messages
    config: ModelConfig
    names: TensorNames
    is_interleaved: bool  # rows 2 i and 2 i + 1 of a Q or K head are a rotary pair, rather than i and i + head_dim / 2
    shapes: Mapping[str, tuple[int, ...]]  # of every tensor in the files
    stored_types: frozenset[str]  # data types in the files, for messages
    read: Callable[[str, Tensor], None]  # write a tensor's values into a tensor of its shape; raises BrokenCheckpoint
    grids: Mapping[str, int] = field(default_factory=dict)  # matrix -> bits of its grid (GroupedWeight)
    read_grid: Callable[[str], GroupedWeight | None] = lambda _: None  # such a matrix; None if it does not fit
    blocks: Mapping[str, str] = field(default_factory=dict)  # matrix -> kind of its blocks, a key of BLOCK_SIZES
    read_blocks: Callable[[str], Tensor] = lambda _: torch.empty(0)  # such a matrix, [rows, bytes] uint8
    unused: frozenset[str] = frozenset()  # tensors in the files that no weight needs
    files: tuple[Path, ...] = ()  # that the model is in; empty: all in the folder `path`


@dataclass(frozen=True)
class Part:
    """A tensor of the files that is a weight of the model, or some of its rows."""

    source: str
    shape: tuple[int, ...]
    num_interleaved_heads: int = 0  # 0: the rows stay in their order


def weight_parts(checkpoint: Checkpoint) -> dict[str, list[Part]]:
    """Return the tensors that make up each weight of the model, concatenated by rows."""
    config = checkpoint.config
    hidden, inner = config.hidden_size, config.intermediate_size
    q_rows, kv_rows = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    q_heads, k_heads = (config.num_heads, config.num_kv_heads) if checkpoint.is_interleaved else (0, 0)

    def part(word: str, *shape: int, layer: int = -1, num_interleaved_heads: int = 0) -> Part:
        return Part(checkpoint.names[word].format(layer), shape, num_interleaved_heads)

    parts = {
        "embedding.weight": [part("embedding", config.vocab_size, hidden)],
        "norm.weight": [part("norm", hidden)],
    }
    if not config.tie_embeddings:
        parts["output.weight"] = [part("output", config.vocab_size, hidden)]
    for i in range(config.num_layers):
        ours = f"layers.{i}."
        for suffix, width in (("weight", (hidden,)), *((("bias", ()),) if config.has_qkv_bias else ())):
            kind = "" if suffix == "weight" else "_bias"
            parts[f"{ours}attention.qkv.{suffix}"] = [
                part(f"q{kind}", q_rows, *width, layer=i, num_interleaved_heads=q_heads),
                part(f"k{kind}", kv_rows, *width, layer=i, num_interleaved_heads=k_heads),
                part(f"v{kind}", kv_rows, *width, layer=i),
            ]
        parts[f"{ours}attention.output.weight"] = [part("attention_output", hidden, q_rows, layer=i)]
        if config.has_output_bias:
            parts[f"{ours}attention.output.bias"] = [part("attention_output_bias", hidden, layer=i)]
        if config.has_query_key_norm:
            parts[f"{ours}attention.query_norm.weight"] = [part("query_norm", config.head_dim, layer=i)]
            parts[f"{ours}attention.key_norm.weight"] = [part("key_norm", config.head_dim, layer=i)]
        parts[f"{ours}attention_norm.weight"] = [part("attention_norm", hidden, layer=i)]
        parts[f"{ours}feed_forward_norm.weight"] = [part("feed_forward_norm", hidden, layer=i)]
        parts[f"{ours}feed_forward.gate_up.weight"] = [
            part("gate", inner, hidden, layer=i),
            part("up", inner, hidden, layer=i),
        ]
        parts[f"{ours}feed_forward.down.weight"] = [part("down", hidden, inner, layer=i)]
    return parts


def num_parameters(checkpoint: Checkpoint) -> int:
    """Return the number of parameters of the model."""
    return sum(math.prod(part.shape) for parts in weight_parts(checkpoint).values() for part in parts)


def grid_bits(checkpoint: Checkpoint, parts: list[Part]) -> int | None:
    """Return the bits of the grid of a weight in the files; None if it has no grid, or several."""
    bits = {checkpoint.grids.get(part.source) for part in parts}
    return bits.pop() if len(bits) == 1 else None


def check_shapes(checkpoint: Checkpoint) -> None:
    """Raise unless the files have exactly the tensors of the architecture.

    Missing and misshapen ones are BrokenCheckpoint, surplus ones UnsupportedModel.
    """
    num_layers, num_tensors = checkpoint.config.num_layers, len(checkpoint.shapes)
    if num_layers > num_tensors:  # before a list of that length is made
        raise BrokenCheckpoint(f"{checkpoint.path} should have {num_layers} layers; it has {num_tensors} tensors.")
    expected = {part.source: part.shape for parts in weight_parts(checkpoint).values() for part in parts}
    path, shapes = checkpoint.path, checkpoint.shapes
    if missing := [name for name in expected if name not in shapes]:
        raise BrokenCheckpoint(f"{path} lacks {listed(missing)}.")
    if surplus := [name for name in shapes if name not in expected and name not in checkpoint.unused]:
        raise UnsupportedModel(f"{path} has {listed(surplus)}, which this architecture does not have.")
    for name, shape in expected.items():
        if shapes[name] != shape:
            raise BrokenCheckpoint(f"{path}: {name} has the shape {list(shapes[name])}; it must be {list(shape)}.")


def read_weights(
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    grouped: Collection[str] = (),
    in_blocks: Collection[str] = (),
    left_out: Collection[str] = (),
) -> Iterator[tuple[str, Weight]]:
    """Yield every weight that is not left out with its name in the model, in dtype.

    Those named in `grouped` come on the grid of the files, or else in float32. Those named in `in_blocks` come in parts
    as the files have them. Each is allocated once and filled in place. Threads read the next few ahead, no more:
    memory for all weights at once would be several times that of the packed model.
    Raises BrokenCheckpoint for values that are not finite.
    """

    def weight(name: str, parts: list[Part]) -> Weight:
        if name in in_blocks:
            return [stored(part) if part.source in checkpoint.blocks else dense([part], dtype) for part in parts]
        if name not in grouped:
            return dense(parts, dtype)
        grids = [checkpoint.read_grid(part.source) for part in parts] if grid_bits(checkpoint, parts) else []
        whole = [grid for grid in grids if grid is not None]
        return _joined(whole, parts) if len(whole) == len(parts) else dense(parts, torch.float32)

    def dense(parts: list[Part], dtype: torch.dtype) -> Tensor:
        num_rows = sum(part.shape[0] for part in parts)
        weight = torch.empty(num_rows, *parts[0].shape[1:], dtype=dtype)
        for part, rows in zip(parts, torch.split(weight, [part.shape[0] for part in parts]), strict=True):
            checkpoint.read(part.source, rows)
            if not torch.stack(rows.aminmax()).isfinite().all():  # NaN propagates through minimum and maximum
                raise BrokenCheckpoint(f"{checkpoint.path}: {part.source} holds values that are not finite numbers.")
            if part.num_interleaved_heads:
                rows.copy_(half_split(rows, part.num_interleaved_heads))
        return weight

    def stored(part: Part) -> StoredRows:
        order = torch.arange(part.shape[0])
        if part.num_interleaved_heads:
            order = half_split(order, part.num_interleaved_heads)
        return StoredRows(checkpoint.blocks[part.source], checkpoint.read_blocks(part.source), order)

    num_threads = os.cpu_count() or 1
    with ThreadPoolExecutor(num_threads) as pool:  # numpy and torch release the GIL
        ahead: deque[tuple[str, Future[Weight]]] = deque()
        wanted = {name: parts for name, parts in weight_parts(checkpoint).items() if name not in left_out}
        for name, parts in wanted.items():
            ahead.append((name, pool.submit(weight, name, parts)))
            if len(ahead) > num_threads:
                name, read = ahead.popleft()
                yield name, read.result()
        for name, read in ahead:
            yield name, read.result()


def _joined(grids: list[GroupedWeight], parts: list[Part]) -> GroupedWeight:
    """Return the grids of the parts of a weight as one, with the rows in the order of the model."""

    def rows(field: str) -> Tensor:
        split = [
            half_split(getattr(grid, field), part.num_interleaved_heads)
            if part.num_interleaved_heads
            else getattr(grid, field)
            for grid, part in zip(grids, parts, strict=True)
        ]
        return torch.cat(split)

    return GroupedWeight(rows("values"), rows("scales"), rows("offsets"), grids[0].bits)


def half_split(rows: Tensor, num_heads: int) -> Tensor:
    """Return the rows of a Q or K matrix (or bias) so that dimension i of a head pairs with i + head_dim / 2.

    In the files, rows 2 i and 2 i + 1 of a head are a pair; see model/rope.py.
    """
    pairs = rows.view(num_heads, -1, 2, *rows.shape[1:])  # [num_heads, head_dim / 2, 2, ...]
    return pairs.transpose(1, 2).reshape(rows.shape)


def listed(names: list[str]) -> str:
    """Return the first names of a list of tensors, and the number of the others."""
    shown = ", ".join(ascii(name)[1:-1][:80] for name in names[:_NUM_NAMED])
    rest = f" and {len(names) - _NUM_NAMED} more" if len(names) > _NUM_NAMED else ""
    return f"the tensor{'s' * (len(names) > 1)} {shown}{rest}"
