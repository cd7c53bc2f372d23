"""Part `kernels`: each kernel on small shapes against the functions of the plain model on the CPU."""

import random
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu_inputs import (
    BLOCK_KINDS,
    BLOCK_SIZE,
    PagedCase,
    block_linear,
    numbers,
    packed_linear,
    paged_case,
    weight,
)
from benchmarks.gpu_results import guarded
from benchmarks.gpu_sizes import Sizes
from caravan.model.attention.reference import ReferenceAttention
from caravan.model.cuda.attention import CudaAttention
from caravan.model.cuda.heads import rotated_queries
from caravan.model.cuda.linear import product
from caravan.model.cuda.packed_layouts import SUPERBLOCK
from caravan.model.cuda.rows import normalized, swiglu
from caravan.model.cuda.sampler import CudaSampler
from caravan.model.quantization import dequantize, quantize
from caravan.model.rms_norm import RMSNorm
from caravan.model.rope import apply_rope, rope_table
from caravan.model.sampling.sampler import SamplingRow, sample
from caravan.model.sampling.sampling_params import SamplingParams

DTYPES = (torch.float32, torch.bfloat16)
SUM_LIMIT = 1e-4  # of sums of thousands of numbers in float32, in another order than the reference
ATTENTION_LIMITS = {torch.float32: 2e-5, torch.bfloat16: 2e-2}
SAMPLER_ROWS = 8


def compare_kernels(sizes: Sizes) -> Iterator[dict[str, Any]]:
    """Yield the greatest error of each kernel, and its limit. An error is relative to 1 + the right number."""
    for dtype in DTYPES:
        yield from guarded(f"rows, {dtype}", _rows(sizes, dtype))
        yield from guarded(f"products, {dtype}", _products(sizes, dtype))
        yield from guarded(f"heads, {dtype}", _heads(sizes, dtype))
        for window in (None, sizes.lengths[0] // 2):
            yield from guarded(f"attention, {dtype}, window {window}", _attention(sizes, dtype, window))
    yield from guarded("attention, int8 pool", _attention(sizes, torch.bfloat16, None, is_int8=True))
    yield from guarded("sampler", _sampler(sizes))


def _rows(sizes: Sizes, dtype: torch.dtype) -> Iterator[dict[str, Any]]:
    """Yield the results of the norm and of SwiGLU: a few roundings to the dtype."""
    limit = (8 if dtype == torch.float32 else 2) * torch.finfo(dtype).eps  # sums have another order
    width = sizes.shapes.hidden_size
    x, added = (numbers(sizes.oracle_rows, width, device="cpu", dtype=dtype, seed=seed) for seed in (0, 1))
    norm = RMSNorm(width, 1e-5)
    norm.weight.data = 1 + numbers(width, device="cpu", dtype=dtype) / 10
    on_device, other, scales = (one.to(sizes.device) for one in (x, added, norm.weight.data))
    total, found = normalized(on_device, other, scales, norm.eps)
    yield _result("residual", dtype, total, x + added, 0)
    yield _result("norm", dtype, found, norm(x + added), limit)
    gates = 3 * numbers(sizes.oracle_rows, 2 * sizes.shapes.intermediate_size, device="cpu", dtype=dtype)
    gate, up = gates.chunk(2, dim=-1)
    expected = (gate.float() / (1 + torch.exp(-gate.float()))).to(dtype) * up
    yield _result("SwiGLU", dtype, swiglu(gates.to(sizes.device)), expected, limit)


def _products(sizes: Sizes, dtype: torch.dtype) -> Iterator[dict[str, Any]]:
    """Yield the results of products in float32 and rounded, and with packed weights."""
    outputs, inputs = sizes.shapes.products()["down"]
    x, plain = (
        numbers(sizes.oracle_rows, inputs, device="cpu", dtype=dtype),
        weight(outputs, inputs, device="cpu", dtype=dtype),
    )
    exact = F.linear(x.double(), plain.double())
    on_device = x.to(sizes.device)
    found = product(on_device, plain.to(sizes.device), dtype=torch.float32)
    yield _result("product, float32 sums", dtype, found, exact, SUM_LIMIT)
    found = product(on_device, plain.to(sizes.device))
    yield _result("product", dtype, found, exact, SUM_LIMIT + torch.finfo(dtype).eps)
    on_grid = dequantize(quantize(plain, 4)).to(dtype)
    packed = packed_linear(plain, sizes.device)(on_device)
    limit = 0 if _sums_are_alike(sizes) else SUM_LIMIT + torch.finfo(dtype).eps
    yield _result("product of int4", dtype, packed, product(on_device, on_grid.to(sizes.device)), limit)
    width = -(-inputs // SUPERBLOCK) * SUPERBLOCK
    rows = numbers(sizes.oracle_rows, width, device="cpu", dtype=dtype).to(sizes.device)
    for kind in BLOCK_KINDS:
        linear, weights = block_linear(kind, outputs, width, sizes.device)
        expected = product(rows, weights.to(dtype).to(sizes.device))
        yield _result(f"product of {kind}", dtype, linear(rows), expected, limit)


def _sums_are_alike(sizes: Sizes) -> bool:
    """Return whether packed weights are multiplied in the order of others: not by the instructions of an A100."""
    return not sizes.is_gpu or torch.cuda.get_device_capability()[0] >= 9


def _heads(sizes: Sizes, dtype: torch.dtype) -> Iterator[dict[str, Any]]:
    """Yield the results of RoPE and of writing the pool: multiplied and rounded once each, so equal."""
    shapes, rows = sizes.shapes, sizes.oracle_rows
    qkv = numbers(rows, shapes.num_heads + 2 * shapes.num_kv_heads, shapes.head_dim, device="cpu", dtype=dtype)
    queries, keys, values = torch.split(qkv, [shapes.num_heads, shapes.num_kv_heads, shapes.num_kv_heads], dim=1)
    table = rope_table(shapes.head_dim, 4 * rows, 500_000.0)
    positions = torch.arange(rows) * 3
    slots = torch.randperm(-(-rows // BLOCK_SIZE) * BLOCK_SIZE, generator=torch.Generator().manual_seed(0))[:rows]
    pool_shape = (-(-rows // BLOCK_SIZE), BLOCK_SIZE, shapes.num_kv_heads, shapes.head_dim)
    expected = [torch.zeros(pool_shape, dtype=dtype) for _ in range(2)]
    found = [torch.zeros(pool_shape, dtype=dtype, device=sizes.device) for _ in range(2)]
    cos, sin = table[0][positions], table[1][positions]
    ReferenceAttention().write(apply_rope(keys, cos, sin), values, expected[0], expected[1], slots)
    rotated = rotated_queries(
        qkv.to(sizes.device),
        (table[0].to(sizes.device), table[1].to(sizes.device)),
        positions.to(sizes.device),
        slots.to(sizes.device),
        found[0],
        found[1],
    )
    yield _result("rotated queries", dtype, rotated, apply_rope(queries, cos, sin), 0)
    yield _result("keys in the pool", dtype, found[0], expected[0], 0)
    yield _result("values in the pool", dtype, found[1], expected[1], 0)


def _attention(
    sizes: Sizes, dtype: torch.dtype, window: int | None, *, is_int8: bool = False
) -> Iterator[dict[str, Any]]:
    """Yield the results of attention for sequences that decode, and of the same with chunks among them."""
    name = "attention" + (", int8 pool" if is_int8 else "") + (f", window {window}" if window else "")
    chunks = [1 if b % 2 else min(length, 40) for b, length in enumerate(sizes.lengths)]
    for kind, num_queries in (("decode", [1] * len(sizes.lengths)), ("chunks", chunks)):
        case = paged_case(sizes.lengths, num_queries, sizes.shapes, device="cpu", dtype=dtype, is_int8=is_int8)
        expected = attended(ReferenceAttention(), case, window)
        found = attended(CudaAttention(), case.to(sizes.device), window)
        yield _result(f"{name}, {kind}", dtype, found, expected, ATTENTION_LIMITS[dtype])


def attended(attention: CudaAttention | ReferenceAttention, case: PagedCase, window: int | None = None) -> Tensor:
    """Return the attention of a case's queries, [T, num_heads, head_dim]."""
    return attention(case.queries, case.keys, case.values, case.batch, window)


def _sampler(sizes: Sizes) -> Iterator[dict[str, Any]]:
    """Yield for how many rows the device's sampler draws another token than the CPU's."""
    choose = random.Random(0)
    sampler = CudaSampler(SAMPLER_ROWS, sizes.shapes.vocab_size, torch.device(sizes.device))
    differing = 0
    for turn in range(sizes.sampler_rounds):
        logits = 3 * numbers(SAMPLER_ROWS, sizes.shapes.vocab_size, device="cpu", dtype=torch.float32, seed=turn)
        rows = [SamplingRow(_params(choose), choose.randrange(9), [1, 2, 5], [2, 5, 5]) for _ in range(SAMPLER_ROWS)]
        expected, found = sample(logits, rows), sampler.sample(logits.to(sizes.device), rows)
        differing += sum(
            (ours and ours.token_id) != (theirs and theirs.token_id)
            for ours, theirs in zip(found, expected, strict=True)
        )
    count = SAMPLER_ROWS * sizes.sampler_rounds
    yield {"kernel": "sampler", "rows": count, "differing": differing, "is_right": differing == 0}


def _params(choose: random.Random) -> SamplingParams:
    return SamplingParams(
        seed=choose.getrandbits(40),
        max_tokens=100,
        temperature=choose.choice([0.0, 0.4, 1.0, 1.5]),
        top_k=choose.choice([0, 0, 40]),
        top_p=choose.choice([1.0, 0.9]),
        min_p=choose.choice([0.0, 0.02]),
        repetition_penalty=choose.choice([1.0, 1.3]),
        logit_bias=choose.choice([{}, {3: 4.0}]),
    )


def _result(kernel: str, dtype: torch.dtype, found: Tensor, expected: Tensor, limit: float) -> dict[str, Any]:
    """Return the greatest error, or None where a number is not finite."""
    right = expected.double().cpu()
    error = ((found.double().cpu() - right).abs() / (1 + right.abs())).max().item()
    is_number = error == error  # false for NaN
    return {
        "kernel": kernel,
        "dtype": str(dtype).removeprefix("torch."),
        "error": float(f"{error:.3g}") if is_number else None,
        "limit": float(f"{limit:.3g}"),
        "is_right": is_number and error <= limit,
    }
