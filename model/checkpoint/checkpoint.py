"""Checkpoint: a model on disk whose weights are not read yet, and how its tensors become weights of the model."""

import math
import os
from collections import deque
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from caravan.model.blocks import StoredRows, WeightPart
from caravan.model.checkpoint import ALL_ROWS, BrokenCheckpoint
from caravan.model.checkpoint.experts import expert_parts
from caravan.model.checkpoint.fused_tensors import first_rows_in_fused
from caravan.model.checkpoint.part import Part
from caravan.model.checkpoint.unread_rows import UnreadRows
from caravan.model.config import ModelConfig, UnsupportedModel
from caravan.model.quantization import GroupedWeight
from caravan.model.share import Share

Weight = Tensor | GroupedWeight | list[WeightPart] | UnreadRows
TensorNames = Mapping[str, str]  # kind of tensor -> its name in the files, with {} for the layer
_MAX_PIECES_AHEAD = 8
_NUM_NAMED = 3  # tensors named in an error; the rest are counted


class ReadTensor(Protocol):
    """Write the values of some rows of a tensor, or all of them, into `out`; raises BrokenCheckpoint."""

    def __call__(self, name: str, out: Tensor, rows: slice = ALL_ROWS, /) -> None: ...


class ReadGrid(Protocol):
    """Return some rows of a matrix of Checkpoint.grids; None if not all of the matrix fits the grid."""

    def __call__(self, name: str, rows: slice = ALL_ROWS, /) -> GroupedWeight | None: ...


class ReadBlocks(Protocol):
    """Return some rows of a matrix of Checkpoint.blocks, [rows, bytes of a row] uint8."""

    def __call__(self, name: str, rows: slice = ALL_ROWS, /) -> Tensor: ...


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What each format knows about its files."""

    path: Path
    format: str  # for messages
    architecture: str  # as the files name it, for messages
    config: ModelConfig
    names: TensorNames
    is_interleaved: bool  # rows 2 i and 2 i + 1 of a Q or K head are a rotary pair, rather than i and i + head_dim / 2
    shapes: Mapping[str, tuple[int, ...]]  # of every tensor in the files
    stored_types: frozenset[str]  # data types in the files, for messages
    file_type: str  # of most weights, in one word; see file_type.py
    read: ReadTensor
    interleaves_gate_up: bool = False  # rows of gate and up projections alternate in one tensor
    added_to_norms: float = 0.0  # to each weight of a norm, which the files have without it
    grids: Mapping[str, int] = field(default_factory=dict)  # matrix -> bits of its grid (GroupedWeight)
    read_grid: ReadGrid = lambda _name, _rows=ALL_ROWS: None
    blocks: Mapping[str, str] = field(default_factory=dict)  # matrix -> kind of its blocks, a key of BLOCK_SIZES
    read_blocks: ReadBlocks = lambda _name, _rows=ALL_ROWS: torch.empty(0)
    unused: frozenset[str] = frozenset()  # tensors in the files that no weight needs
    files: tuple[Path, ...] = ()  # that the model is in; empty: all in the folder `path`
    merged: "MergedAdapter | None" = None


@dataclass(frozen=True, kw_only=True)
class MergedAdapter:
    """An adapter whose product is added to weights as they are read."""

    files: tuple[Path, ...]
    described: str  # modules, shapes and scales: weights depend on them
    text: str  # for people


def weight_parts(checkpoint: Checkpoint, share: Share | None = None) -> dict[str, list[Part]]:
    """Return the tensors that make up each weight of the model, concatenated by rows; of one rank with a share.

    Each rank has the whole embedding table and all norms. A tied output head is split when it is placed.
    """
    config, share = checkpoint.config, share or Share()
    hidden, inner, head_dim = config.hidden_size, config.intermediate_size, config.head_dim
    heads, kv_heads = share.heads(config), share.kv_heads(config)
    q_rows, kv_rows = (range(some.start * head_dim, some.stop * head_dim) for some in (heads, kv_heads))
    hidden_rows, inner_rows = share.outputs(hidden), share.outputs(inner)
    assert config.rotary_dim is None or not checkpoint.is_interleaved, "no format has both"
    is_reordered = checkpoint.is_interleaved or config.rotary_dim is not None
    num_q, num_k = (len(heads), len(kv_heads)) if is_reordered else (0, 0)
    alternates = checkpoint.interleaves_gate_up
    first_rows = {"up": 1, "up_bias": 1} if alternates else first_rows_in_fused(config, checkpoint.names)

    def part(
        word: str, rows: range, *width: int, layer: int = -1, expert: int = -1, num_reordered_heads: int = 0
    ) -> Part:
        name, first_row = checkpoint.names[word].format(layer, expert), first_rows.get(word, 0) + rows.start
        added = checkpoint.added_to_norms if word.endswith("norm") else 0.0
        step = 2 if alternates and word.startswith(("gate", "up")) else 1
        return Part(name, (len(rows), *width), num_reordered_heads, first_row, step, added, config.rotary_dim)

    parts = {
        "embedding.weight": [part("embedding", range(config.vocab_size), hidden)],
        "norm.weight": [part("norm", range(hidden))],
    }
    if not config.tie_embeddings:
        parts["output.weight"] = [part("output", share.outputs(config.vocab_size), hidden)]
    for i in range(config.num_layers):
        ours = f"layers.{i}."
        for suffix, width in (("weight", (hidden,)), *((("bias", ()),) if config.has_qkv_bias else ())):
            kind = "" if suffix == "weight" else "_bias"
            parts[f"{ours}attention.qkv.{suffix}"] = [
                part(f"q{kind}", q_rows, *width, layer=i, num_reordered_heads=num_q),
                part(f"k{kind}", kv_rows, *width, layer=i, num_reordered_heads=num_k),
                part(f"v{kind}", kv_rows, *width, layer=i),
            ]
        parts[f"{ours}attention.output.weight"] = [
            part("attention_output", hidden_rows, config.num_heads * head_dim, layer=i)
        ]
        if config.has_output_bias:
            parts[f"{ours}attention.output.bias"] = [part("attention_output_bias", hidden_rows, layer=i)]
        if config.has_attention_sinks:
            parts[f"{ours}attention.sinks"] = [part("sinks", heads, layer=i)]
        if config.has_query_key_norm:
            spans_heads = config.query_key_norm_spans_heads
            query_width, key_width = (config.num_heads, config.num_kv_heads) if spans_heads else (1, 1)
            parts[f"{ours}attention.query_norm.weight"] = [part("query_norm", range(query_width * head_dim), layer=i)]
            parts[f"{ours}attention.key_norm.weight"] = [part("key_norm", range(key_width * head_dim), layer=i)]
        parts[f"{ours}attention_norm.weight"] = [part("attention_norm", range(hidden), layer=i)]
        parts[f"{ours}feed_forward_norm.weight"] = [part("feed_forward_norm", range(hidden), layer=i)]
        for word in ("attention_post_norm", "feed_forward_post_norm") if config.has_post_norm else ():
            parts[f"{ours}{word}.weight"] = [part(word, range(hidden), layer=i)]
        if config.num_experts:
            experts = expert_parts(config, checkpoint.names, i, part)
            parts |= {f"{ours}feed_forward.{name}": some for name, some in experts.items()}
            continue
        parts[f"{ours}feed_forward.gate_up.weight"] = [
            part("gate", inner_rows, hidden, layer=i),
            part("up", inner_rows, hidden, layer=i),
        ]
        parts[f"{ours}feed_forward.down.weight"] = [part("down", hidden_rows, inner, layer=i)]
    return parts


def num_parameters(checkpoint: Checkpoint, share: Share | None = None) -> int:
    """Return the number of parameters of the model, or of one rank."""
    return sum(math.prod(part.shape) for parts in weight_parts(checkpoint, share).values() for part in parts)


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
    num_experts = num_layers * checkpoint.config.num_experts
    if num_experts > sum(shape[0] for shape in checkpoint.shapes.values() if shape):
        raise BrokenCheckpoint(f"{checkpoint.path} should have {num_experts} experts; its tensors have fewer rows.")
    expected = {  # the last part of a fused tensor says how many rows it has
        part.source: (part.rows.stop, *part.shape[1:]) for parts in weight_parts(checkpoint).values() for part in parts
    }
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
    share: Share | None = None,
    *,
    by_rows: bool = False,
) -> Iterator[tuple[str, Weight]]:
    """Yield every weight that is not left out with its name in the model, in dtype; of one rank with a share.

    Weights of norms are in float32 if the architecture has them so. Those named in `grouped` come on the grid of the
    files, or else in float32; `by_rows` as UnreadRows. Those named in `in_blocks` come in parts as the files have them.
    Each is allocated once and filled in place. Threads read the next few ahead, no more: memory for all weights at once
    would be several times that of the packed model.
    Raises BrokenCheckpoint for values that are not finite.
    """

    def weight(name: str, parts: list[Part]) -> Weight:
        if name in in_blocks:
            return [in_file(part) if part.source in checkpoint.blocks else dense([part], dtype) for part in parts]
        if name not in grouped:
            return dense(parts, torch.float32 if checkpoint.config.is_wide(name) else dtype)
        if not by_rows:
            return grouped_weight(parts)
        shape = torch.Size((sum(part.shape[0] for part in parts), *parts[0].shape[1:]))
        # A weight is on a grid as a whole or not at all.
        has_grid = all(
            grid_bits(checkpoint, parts) and checkpoint.read_grid(part.source, slice(0, 1)) is not None
            for part in parts
        )

        def read_rows(rows: slice) -> Tensor | GroupedWeight:
            return piece(parts, rows.start, rows.stop, has_grid=has_grid)

        return UnreadRows(shape, read_rows, pool, min(num_threads, _MAX_PIECES_AHEAD))

    def grouped_weight(parts: list[Part]) -> Tensor | GroupedWeight:
        grids = [checkpoint.read_grid(part.source, part.rows) for part in parts] if grid_bits(checkpoint, parts) else []
        whole = [grid for grid in grids if grid is not None]
        return _joined(whole, parts) if len(whole) == len(parts) else dense(parts, torch.float32)

    def piece(parts: list[Part], start: int, stop: int, *, has_grid: bool) -> Tensor | GroupedWeight:
        """Return rows of the concatenated parts: whole heads are read, since their rows change places."""
        cuts, first_row, num_left_out = [], 0, -1
        for part in parts:
            num_rows = part.shape[0]
            unit = num_rows // part.num_reordered_heads if part.num_reordered_heads else 1
            first, end = max(start - first_row, 0), min(stop - first_row, num_rows)
            if first < end:
                low, high = first // unit * unit, -(-end // unit) * unit
                num_left_out = first - low if num_left_out < 0 else num_left_out
                cuts.append(
                    replace(
                        part,
                        shape=(high - low, *part.shape[1:]),
                        first_row=part.first_row + low * part.step,
                        num_reordered_heads=(high - low) // unit if part.num_reordered_heads else 0,
                    )
                )
            first_row += num_rows
        wanted = slice(num_left_out, num_left_out + stop - start)
        if not has_grid:
            return dense(cuts, torch.float32)[wanted]
        grids = [checkpoint.read_grid(part.source, part.rows) for part in cuts]
        return _joined([grid for grid in grids if grid is not None], cuts).outputs(wanted)

    def dense(parts: list[Part], dtype: torch.dtype) -> Tensor:
        num_rows = sum(part.shape[0] for part in parts)
        weight = torch.empty(num_rows, *parts[0].shape[1:], dtype=dtype)
        for part, rows in zip(parts, torch.split(weight, [part.shape[0] for part in parts]), strict=True):
            checkpoint.read(part.source, rows, part.rows)
            if part.added:
                rows.add_(part.added)
            if not torch.stack(rows.aminmax()).isfinite().all():  # NaN propagates through minimum and maximum
                raise BrokenCheckpoint(f"{checkpoint.path}: {part.source} holds values that are not finite numbers.")
            if part.num_reordered_heads:
                rows.copy_(part.in_order(rows))
        return weight

    def in_file(part: Part) -> StoredRows:
        order = part.in_order(torch.arange(part.shape[0]))
        stored = checkpoint.read_blocks(part.source, part.rows)
        return StoredRows(checkpoint.blocks[part.source], stored, order)

    num_threads = os.cpu_count() or 1
    with ThreadPoolExecutor(num_threads) as pool:  # numpy and torch release the GIL
        ahead: deque[tuple[str, Future[Weight]]] = deque()
        wanted = {name: parts for name, parts in weight_parts(checkpoint, share).items() if name not in left_out}
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
        return torch.cat([part.in_order(getattr(grid, field)) for grid, part in zip(grids, parts, strict=True)])

    return GroupedWeight(rows("values"), rows("scales"), rows("offsets"), grids[0].bits)


def listed(names: list[str]) -> str:
    """Return the first names of a list of tensors, and the number of the others."""
    shown = ", ".join(ascii(name)[1:-1][:80] for name in names[:_NUM_NAMED])
    rest = f" and {len(names) - _NUM_NAMED} more" if len(names) > _NUM_NAMED else ""
    return f"the tensor{'s' * (len(names) > 1)} {shown}{rest}"
