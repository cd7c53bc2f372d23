"""Part `times`: the time of each kernel beside what its bytes and operations take at the GPU's peaks."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu_clock import launch_seconds
from benchmarks.gpu_costs import Cost, decode_costs, prefill_costs, product_cost
from benchmarks.gpu_inputs import BLOCK_SIZE, numbers, packed_linear, paged_case, weight, zero_weight
from benchmarks.gpu_launches import PACKED, PACKED_ROWS
from benchmarks.gpu_oracle import attended
from benchmarks.gpu_results import guarded
from benchmarks.gpu_shapes import BFLOAT16, INT4, Gpu, Product, packed_storage
from benchmarks.gpu_sizes import Sizes
from caravan.model.cuda.attention import CudaAttention
from caravan.model.cuda.heads import rotated_queries
from caravan.model.cuda.linear import product
from caravan.model.cuda.packed_layouts import BYTES, SUPERBLOCK, PackedLayout
from caravan.model.cuda.packed_linear import write_packed_product
from caravan.model.cuda.rows import normalized, swiglu
from caravan.model.cuda.sampler_launches import SamplerKernels
from caravan.model.rope import rope_table
from caravan.model.sampling.sampler import SamplingRow
from caravan.model.sampling.sampling_params import SamplingParams

TIMED = MappingProxyType({**PACKED, "int8": BYTES})  # kinds of packed weights
# Shares are of bytes and matrix operations: instructions, which the predictions in docs/gpu.md have, count nothing.
NO_INSTRUCTIONS: Mapping[str, float] = MappingProxyType(
    {
        f"{kernel}, {limit} rows": 0.0
        for kernel in ("multiply", *(f"multiply_packed, {name}" for name in TIMED))
        for limit in PACKED_ROWS
    }
)

Launch = Callable[[], object]
Costs = Mapping[str, Cost]


@dataclass(frozen=True, kw_only=True)
class TimedKernel:
    """A kernel, or what does its work, with the cost of one launch."""

    name: str
    cost: Cost
    make: Callable[[], Launch]  # with operands of its own


def time_kernels(sizes: Sizes, gpu: Gpu | None) -> Iterator[dict[str, Any]]:
    """Yield the time of a launch of each kernel, and its share of the peaks if the GPU's are known."""
    for kernel in _peaks(sizes):
        yield from guarded(kernel.name, _results(sizes, gpu, kernel))
    for streams in sizes.streams:
        costs = {
            cost.kernel: cost for cost in decode_costs(sizes.shapes, BFLOAT16, streams, NO_INSTRUCTIONS, sizes.context)
        }
        packed = {
            cost.kernel: cost for cost in decode_costs(sizes.shapes, INT4, streams, NO_INSTRUCTIONS, sizes.context)
        }
        for kernel in (*_products(sizes, streams, costs, packed), *_others(sizes, streams, costs)):
            for result in guarded(kernel.name, _results(sizes, gpu, kernel)):
                yield {"streams": streams, **result}
    costs = {cost.kernel: cost for cost in prefill_costs(sizes.shapes, BFLOAT16, sizes.prompt, NO_INSTRUCTIONS)}
    packed = {cost.kernel: cost for cost in prefill_costs(sizes.shapes, INT4, sizes.prompt, NO_INSTRUCTIONS)}
    del costs["product: head"]  # of one row
    for kernel in (*_products(sizes, sizes.prompt, costs, packed), _chunk(sizes, costs)):
        for result in guarded(kernel.name, _results(sizes, gpu, kernel)):
            yield {"prompt": sizes.prompt, **result}


def _results(sizes: Sizes, gpu: Gpu | None, kernel: TimedKernel) -> Iterator[dict[str, Any]]:
    """Yield the time of a kernel."""
    cost = kernel.cost
    count = sizes.launches
    copies = min(count, math.ceil(sizes.cold_bytes / max(cost.num_bytes, 1)))
    launches = [kernel.make() for _ in range(max(copies, 1))]
    seconds = launch_seconds(launches, count, torch.device(sizes.device))
    share = {} if gpu is None else {"share": round(cost.seconds(gpu) / seconds, 3)}
    yield {
        "kernel": kernel.name,
        "us": round(1e6 * seconds, 2),
        "GB/s": round(1e-9 * cost.num_bytes / seconds, 1),
        "TFLOP/s": round(1e-12 * cost.matrix_operations / seconds, 2),
        **share,
    }


def one_launch(*costs: Cost) -> Cost:
    """Return the cost of one launch of each."""
    first, *others = (
        replace(
            cost,
            launches=1,
            num_bytes=cost.num_bytes / cost.launches,
            matrix_operations=cost.matrix_operations / cost.launches,
            float64_instructions=cost.float64_instructions / cost.launches,
        )
        for cost in costs
    )
    for other in others:
        first = replace(
            first,
            num_bytes=first.num_bytes + other.num_bytes,
            matrix_operations=first.matrix_operations + other.matrix_operations,
            float64_instructions=first.float64_instructions + other.float64_instructions,
        )
    return first


def _peaks(sizes: Sizes) -> Iterator[TimedKernel]:
    """Yield what shows the peaks that PyTorch reaches: a copy, and a large product of cuBLAS."""
    size = 8192 if sizes.is_gpu else 16
    length = 16 * size**2  # bytes

    def copy() -> Launch:
        source = torch.zeros(length, dtype=torch.uint8, device=sizes.device)
        target = torch.empty_like(source)
        return lambda: target.copy_(source)

    def square() -> Launch:
        x, y = (numbers(size, size, device=sizes.device, seed=seed) for seed in (0, 1))
        return lambda: x @ y

    yield TimedKernel(name="copy", cost=Cost(kernel="copy", launches=1, num_bytes=2 * length), make=copy)
    yield TimedKernel(
        name=f"cuBLAS, {size} cubed",
        cost=Cost(kernel="square", launches=1, num_bytes=6 * size**2, matrix_operations=2 * size**3),
        make=square,
    )


def _products(sizes: Sizes, rows: int, costs: Costs, packed: Costs) -> Iterator[TimedKernel]:
    """Yield the matrix products, in bfloat16 by our kernel and by cuBLAS, and in 4 bits."""
    head = (sizes.shapes.vocab_size, sizes.shapes.hidden_size)
    for name, (outputs, inputs) in {**sizes.shapes.products(), "head": head}.items():
        if f"product: {name}" not in costs:
            continue
        dtype = torch.float32 if name == "head" else None

        def operands(outputs: int = outputs, inputs: int = inputs) -> tuple[Tensor, Tensor]:
            return numbers(rows, inputs, device=sizes.device), weight(outputs, inputs, device=sizes.device)

        def ours(operands: Callable[[], tuple[Tensor, Tensor]] = operands, dtype: torch.dtype | None = dtype) -> Launch:
            x, plain = operands()
            return lambda: product(x, plain, dtype=dtype)

        def cublas(operands: Callable[[], tuple[Tensor, Tensor]] = operands) -> Launch:
            x, plain = operands()
            return lambda: F.linear(x, plain)

        def int4(operands: Callable[[], tuple[Tensor, Tensor]] = operands) -> Launch:
            x, plain = operands()
            linear = packed_linear(plain, sizes.device)
            return lambda: linear(x)

        cost = one_launch(costs[f"product: {name}"])
        yield TimedKernel(name=f"product {name}", cost=cost, make=ours)
        yield TimedKernel(name=f"cuBLAS {name}", cost=cost, make=cublas)
        if name != "head":
            yield TimedKernel(name=f"int4 {name}", cost=one_launch(packed[f"product: {name}"]), make=int4)
    yield from _packed_products(sizes, rows)


def _packed_products(sizes: Sizes, rows: int) -> Iterator[TimedKernel]:
    """Yield the down projection with weights of the other packed kinds, which are zeros: no time depends on numbers."""
    outputs, inputs = sizes.shapes.products()["down"]
    for kind, layout in TIMED.items():
        if kind == "int4" or (layout.has_factors and inputs % SUPERBLOCK):
            continue

        def packed(layout: PackedLayout = layout) -> Launch:
            x, packed = numbers(rows, inputs, device=sizes.device), zero_weight(layout, outputs, inputs, sizes.device)
            output = torch.empty(rows, outputs, dtype=x.dtype, device=x.device)
            return lambda: write_packed_product(x, packed, None, output)

        product = Product(kind, 1, outputs, inputs, packed_storage(kind, layout))
        yield TimedKernel(name=f"{kind} down", cost=product_cost(product, rows, NO_INSTRUCTIONS), make=packed)


def _others(sizes: Sizes, rows: int, costs: Costs) -> Iterator[TimedKernel]:
    """Yield the other kernels of a decode step."""
    shapes, device = sizes.shapes, sizes.device

    def norm() -> Launch:
        x, scale = numbers(rows, shapes.hidden_size, device=device), numbers(shapes.hidden_size, device=device)
        return lambda: normalized(x, x, scale, 1e-5)

    def gate() -> Launch:
        gates = numbers(rows, 2 * shapes.intermediate_size, device=device)
        return lambda: swiglu(gates)

    def rotate() -> Launch:
        qkv = numbers(rows, shapes.num_heads + 2 * shapes.num_kv_heads, shapes.head_dim, device=device)
        cos, sin = (table.to(device) for table in rope_table(shapes.head_dim, sizes.context, 500_000.0))
        pools = torch.empty(2, rows, BLOCK_SIZE, shapes.num_kv_heads, shapes.head_dim, dtype=qkv.dtype, device=device)
        positions = torch.arange(rows, device=device) % sizes.context
        slots = torch.arange(rows, device=device) * BLOCK_SIZE
        return lambda: rotated_queries(qkv, (cos, sin), positions, slots, pools[0], pools[1])

    def attention() -> Launch:
        case = paged_case([sizes.context] * rows, [1] * rows, shapes, device=device)
        return lambda: attended(CudaAttention(), case)

    def sampler() -> Launch:
        kernels = SamplerKernels(rows, shapes.vocab_size, torch.device(device))
        params = SamplingParams(seed=1, max_tokens=9, temperature=0.8, top_p=0.9)
        kernels.table.stage([SamplingRow(params, 0)] * rows, [-1] * rows)
        logits = numbers(rows, shapes.vocab_size, device=device, dtype=torch.float32)
        return lambda: kernels.launch(logits)

    yield TimedKernel(name="norm with residual", cost=one_launch(costs["norm with residual"]), make=norm)
    yield TimedKernel(name="SwiGLU", cost=one_launch(costs["SwiGLU"]), make=gate)
    yield TimedKernel(name="rotate and write", cost=one_launch(costs["rotate and write"]), make=rotate)
    both = one_launch(costs["attention"], costs["merge of splits"])
    yield TimedKernel(name="attention with merge", cost=both, make=attention)
    draw = [replace(cost, launches=1) for name, cost in costs.items() if name.startswith("sampler")]
    yield TimedKernel(name="sampler, all kernels", cost=one_launch(*draw), make=sampler)


def _chunk(sizes: Sizes, costs: Costs) -> TimedKernel:
    """Return the attention of a whole prompt."""

    def make() -> Launch:
        case = paged_case([sizes.prompt], [sizes.prompt], sizes.shapes, device=sizes.device)
        return lambda: attended(CudaAttention(), case)

    return TimedKernel(name="attention of a prompt", cost=one_launch(costs["attention"]), make=make)
