"""Inputs of kernels: random numbers, packed weights, and sequences in scattered blocks of a KV pool."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import gguf
import numpy as np
import torch
from torch import Tensor

from benchmarks.gpu_shapes import Shapes
from benchmarks.shapes import random_blocks
from caravan.model.attention.reference import ReferenceAttention
from caravan.model.blocks import StoredRows
from caravan.model.cuda.packed_layouts import SUPERBLOCK, WORD_INPUTS, PackedLayout, padded_inputs
from caravan.model.cuda.packed_linear import PackedLinear, PackedQuantization
from caravan.model.cuda.packing import PackedWeight
from caravan.model.forward_batch import ForwardBatch
from caravan.model.kv_quantization import row_bytes
from caravan.model.linear import Linear

BLOCK_SIZE = 16
BLOCK_KINDS = ("Q4_K", "Q6_K")  # of blocks whose products are computed: those of Q4_K_M
Device = str | torch.device


def numbers(*shape: int, device: Device, dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> Tensor:
    """Return normally distributed numbers, the same ones for a seed on each kind of device."""
    generator = torch.Generator(device).manual_seed(seed)
    return torch.randn(shape, generator=generator, device=device).to(dtype)


def weight(num_outputs: int, num_inputs: int, *, device: Device, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Return a random weight [num_outputs, num_inputs] that keeps the size of what it multiplies."""
    return numbers(num_outputs, num_inputs, device=device, dtype=dtype, seed=1) / math.sqrt(num_inputs)


def packed_linear(plain: Tensor, device: Device, quantization: PackedQuantization = "int4") -> PackedLinear:
    """Return a layer on the device with a weight [out, in], packed."""
    linear = PackedLinear(Linear(plain.shape[1], plain.shape[0], has_bias=False), quantization)
    linear.place(plain, torch.device(device))
    return linear


def block_linear(kind: str, num_outputs: int, num_inputs: int, device: Device) -> tuple[PackedLinear, Tensor]:
    """Return a layer on the device with random blocks of a kind, and its weight [out, in] in float32 on the CPU."""
    stored = torch.from_numpy(random_blocks(kind, num_outputs, num_inputs, np.random.default_rng(0)))
    linear = PackedLinear(Linear(num_inputs, num_outputs, has_bias=False), "native")
    linear.place([StoredRows(kind, stored, torch.arange(num_outputs))], torch.device(device))
    weights = torch.from_numpy(gguf.dequantize(stored.numpy(), gguf.GGMLQuantizationType[kind]))
    return linear, weights


def zero_weight(layout: PackedLayout, num_outputs: int, num_inputs: int, device: Device) -> PackedWeight:
    """Return a packed weight whose numbers and scales are zeros."""
    width = padded_inputs(num_inputs)

    def zeros(width: int, dtype: torch.dtype = torch.int32) -> Tensor:
        return torch.zeros(num_outputs, width, dtype=dtype, device=device)

    numbers = zeros(width * layout.bits // 32)
    if layout.has_factors:
        factors = zeros(math.ceil(num_inputs / SUPERBLOCK))
        return PackedWeight(layout, numbers, zeros(width // WORD_INPUTS), factors)
    scales = zeros(width // layout.group, torch.int32 if layout.has_offsets else layout.scale_dtype)
    return PackedWeight(layout, numbers, scales, None)


@dataclass(frozen=True, kw_only=True)
class PagedCase:
    """Queries for the last tokens of sequences whose keys and values are in a pool."""

    queries: Tensor  # [T, num_heads, head_dim], of the last num_queries tokens of each sequence
    keys: Tensor  # [num_blocks, BLOCK_SIZE, num_kv_heads, row]; slots of no sequence hold NaN
    values: Tensor
    batch: ForwardBatch

    def to(self, device: Device) -> "PagedCase":
        """Return the case on another device."""
        batch = ForwardBatch(**{name: tensor.to(device) for name, tensor in vars(self.batch).items()})
        return PagedCase(
            queries=self.queries.to(device), keys=self.keys.to(device), values=self.values.to(device), batch=batch
        )

    def part(self, sequences: slice) -> "PagedCase":
        """Return some neighbouring sequences of the case, with the same pool."""
        batch, starts = self.batch, self.batch.query_start_loc.tolist()
        first, end, _ = sequences.indices(len(starts) - 1)
        return replace(
            self,
            queries=self.queries[starts[first] : starts[end]],
            batch=replace(
                batch,
                query_start_loc=batch.query_start_loc[first : end + 1] - starts[first],
                seq_lens=batch.seq_lens[first:end].contiguous(),
                block_tables=batch.block_tables[first:end],
            ),
        )

    def decoding(self, index: int) -> "PagedCase":
        """Return the only sequence of the case when query `index` is its last token and is decoded."""
        batch, num_queries = self.batch, self.queries.shape[0]
        return replace(
            self,
            queries=self.queries[index : index + 1],
            batch=replace(
                batch,
                query_start_loc=torch.clamp(batch.query_start_loc, max=1),
                seq_lens=batch.seq_lens - (num_queries - index - 1),
            ),
        )


def paged_case(
    lengths: Sequence[int],
    num_queries: Sequence[int],
    shapes: Shapes,
    *,
    device: Device,
    dtype: torch.dtype = torch.bfloat16,
    is_int8: bool = False,
) -> PagedCase:
    """Return random sequences of these lengths; the last num_queries tokens of each are queries."""
    counts = [-(-length // BLOCK_SIZE) for length in lengths]
    order = torch.randperm(sum(counts) + 1, generator=torch.Generator().manual_seed(0)).int()
    tables = torch.zeros(len(lengths), max(counts), dtype=torch.int32)
    slots = []
    for b, (count, end) in enumerate(zip(counts, accumulate(counts), strict=True)):
        tables[b, :count] = order[end - count : end]
        positions = torch.arange(lengths[b])
        slots.append(tables[b, positions // BLOCK_SIZE].long() * BLOCK_SIZE + positions % BLOCK_SIZE)
    heads = (sum(lengths), shapes.num_kv_heads, shapes.head_dim)
    row = row_bytes(shapes.head_dim) if is_int8 else shapes.head_dim
    pool_shape = (len(order), BLOCK_SIZE, shapes.num_kv_heads, row)

    def empty_pool() -> Tensor:
        if is_int8:
            wide = torch.full((*pool_shape[:3], row // 4), torch.nan, device=device)
            return wide.view(torch.int8)
        return torch.full(pool_shape, torch.nan, dtype=dtype, device=device)

    keys, values = empty_pool(), empty_pool()
    ReferenceAttention().write(
        numbers(*heads, device=device, dtype=dtype, seed=2),
        numbers(*heads, device=device, dtype=dtype, seed=3),
        keys,
        values,
        torch.cat(slots).to(device),
    )
    nothing = torch.empty(0, dtype=torch.int64)
    batch = ForwardBatch(
        token_ids=nothing,
        positions=nothing,
        slot_mapping=nothing,
        query_start_loc=torch.tensor([0, *accumulate(num_queries)], dtype=torch.int32),
        seq_lens=torch.tensor(lengths, dtype=torch.int32),
        block_tables=tables,
        wanted_rows=nothing,
    )
    queries = 2 * numbers(sum(num_queries), shapes.num_heads, shapes.head_dim, device=device, dtype=dtype, seed=4)
    return PagedCase(queries=queries, keys=keys, values=values, batch=batch).to(device)
