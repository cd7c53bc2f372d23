"""Launches of the GPU's kernels as a model of Llama 3.1 8B's shapes makes them, recorded instead of run.

The wrappers of caravan.model.cuda run as they are, with tensors on the CPU: so the types, the alignment of addresses
and strides, and the constants are those of a GPU's launches. Triton's interpreter must be off.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from triton.runtime.jit import JITFunction

from benchmarks.gpu_inputs import zero_weight
from benchmarks.gpu_shapes import LLAMA_8B, Shapes
from caravan.model.cuda.attention import CudaAttention
from caravan.model.cuda.attention_kernels import merge_splits
from caravan.model.cuda.heads import rotated_queries
from caravan.model.cuda.linear import product
from caravan.model.cuda.packed_layouts import BLOCK_LAYOUTS, FEW_ROWS, GRIDS, PackedLayout
from caravan.model.cuda.packed_linear import write_packed_product
from caravan.model.cuda.rows import normalize_heads_, normalized, swiglu
from caravan.model.cuda.sampler_launches import SamplerKernels
from caravan.model.forward_batch import ForwardBatch
from caravan.model.kv_quantization import row_bytes

NUM_ROWS = 32  # sequences that decode
CHUNK_TOKENS = 512  # of one sequence's prompt
CONTEXT = 1024
BLOCK_SIZE = 16
PRODUCT_ROWS = (64, 512, 2048)  # each has another tile
PACKED_ROWS = (FEW_ROWS, *PRODUCT_ROWS)  # the same for packed weights with many outputs
NUM_TOP = 20  # log-probabilities
PACKED = MappingProxyType(  # kinds of weights whose products the page has
    {"int4": GRIDS[4], "Q4_K": BLOCK_LAYOUTS["Q4_K"], "Q6_K": BLOCK_LAYOUTS["Q6_K"]}
)


@dataclass(frozen=True)
class Launch:
    """A kernel with the arguments of one launch."""

    name: str
    kernel: Any  # a JITFunction
    arguments: tuple[Any, ...]
    options: dict[str, Any]  # arguments by name, and num_warps and others


def recorded(run: Callable[[], object], suffix: str = "") -> list[Launch]:
    """Return the launches that `run` makes, in order; no kernel is started."""
    launches: list[Launch] = []

    def record(kernel: Any, *arguments: Any, **options: Any) -> None:
        del options["grid"], options["warmup"]  # not of the kernel
        launches.append(Launch(kernel.__name__ + suffix, kernel, arguments, options))

    with mock.patch.object(JITFunction, "run", record):
        run()
    return launches


def all_launches() -> list[Launch]:
    """Return a launch of each kernel, and of each form of one."""
    return [
        *sampler_launches(),
        *attention_launches(torch.bfloat16),
        *attention_launches(torch.int8, ", int8 pool"),
        *row_launches(),
        *(launch for num_rows in PACKED_ROWS for launch in product_launches(num_rows)),
    ]


def sampler_launches() -> list[Launch]:
    """Return the launches of the sampler's kernels."""
    sampler = SamplerKernels(NUM_ROWS, LLAMA_8B.vocab_size, torch.device("cpu"), num_slots=1)
    logits = torch.empty(NUM_ROWS, LLAMA_8B.vocab_size)

    def run() -> None:
        sampler.launch(logits)
        sampler.record()
        sampler.launch_logprobs(logits, NUM_TOP)
        sampler.launch_masks(logits, torch.empty(NUM_ROWS, LLAMA_8B.vocab_size // 8, dtype=torch.uint8))

    return recorded(run)


def attention_launches(pool_dtype: torch.dtype, suffix: str = "", shapes: Shapes = LLAMA_8B) -> list[Launch]:
    """Return the launches of attention and of what writes the pool, for rows that decode and for a chunk."""
    row_size = row_bytes(shapes.head_dim) if pool_dtype == torch.int8 else shapes.head_dim
    pool = torch.empty(4, BLOCK_SIZE, shapes.num_kv_heads, row_size, dtype=pool_dtype)

    def queries(num_tokens: int) -> Tensor:
        return _numbers(num_tokens, shapes.num_heads, shapes.head_dim)

    def run() -> None:
        attention = CudaAttention()
        attention(queries(NUM_ROWS), pool, pool, _batch(NUM_ROWS, NUM_ROWS))
        attention(queries(CHUNK_TOKENS), pool, pool, _batch(CHUNK_TOKENS, 1))
        num_heads = shapes.num_heads + 2 * shapes.num_kv_heads
        qkv = _numbers(NUM_ROWS, num_heads, shapes.head_dim)
        rope = torch.empty(CONTEXT, shapes.head_dim // 2)
        tokens = torch.empty(NUM_ROWS, dtype=torch.int64)
        rotated_queries(qkv, (rope, rope), tokens, tokens, pool, pool)
        keys = qkv[:, : shapes.num_kv_heads]
        attention.write(keys, keys, pool, pool, tokens)

    found = recorded(run, suffix)
    return [launch for launch in found if not suffix or launch.kernel is not merge_splits]  # it reads no pool


def row_launches() -> list[Launch]:
    """Return the launches of what is computed row by row."""
    shapes = LLAMA_8B
    x, weight = _numbers(NUM_ROWS, shapes.hidden_size), _numbers(shapes.hidden_size)
    gate_up = _numbers(NUM_ROWS, 2 * shapes.intermediate_size)
    qkv, head_weight = _numbers(NUM_ROWS, shapes.num_heads + 16, shapes.head_dim), _numbers(shapes.head_dim)

    def run() -> None:
        normalized(x, x, weight, 1e-5)
        swiglu(gate_up)
        normalize_heads_(qkv, shapes.num_kv_heads, head_weight, head_weight, 1e-5)

    return recorded(run)


def product_launches(num_rows: int) -> list[Launch]:
    """Return the launches of a matrix product with num_rows rows, with weights in bfloat16 and packed.

    FEW_ROWS rows have a tile of their own with packed weights only.
    """
    num_outputs, num_inputs = LLAMA_8B.products()["gate_up"]
    x = _numbers(num_rows, num_inputs)
    suffix = f", {num_rows} rows"
    plain = recorded(lambda: product(x, _numbers(num_outputs, num_inputs)), suffix)
    return (plain if num_rows in PRODUCT_ROWS else []) + [
        launch
        for name, layout in PACKED.items()
        for launch in packed_launches(layout, x, num_outputs, f", {name}{suffix}")
    ]


def packed_launches(layout: PackedLayout, x: Tensor, num_outputs: int, suffix: str) -> list[Launch]:
    """Return the launch of a product of x [T, in] with a packed weight of a layout."""
    weight = zero_weight(layout, num_outputs, x.shape[1], x.device)
    output = _numbers(x.shape[0], num_outputs)
    return recorded(lambda: write_packed_product(x, weight, None, output), suffix)


def _numbers(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.bfloat16)


def _batch(num_tokens: int, num_seqs: int) -> ForwardBatch:
    def integers(*shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
        return torch.empty(shape, dtype=dtype)

    return ForwardBatch(
        token_ids=integers(num_tokens, dtype=torch.int64),
        positions=integers(num_tokens, dtype=torch.int64),
        slot_mapping=integers(num_tokens, dtype=torch.int64),
        query_start_loc=integers(num_seqs + 1),
        seq_lens=integers(num_seqs),
        block_tables=integers(num_seqs, CONTEXT // BLOCK_SIZE),
        wanted_rows=integers(num_seqs, dtype=torch.int64),
    )


def by_name(launches: list[Launch]) -> Iterator[Launch]:
    """Yield the first launch of each name."""
    yield from {launch.name: launch for launch in reversed(launches)}.values()
