"""The kernels of a layer against the functions of the plain model."""

from typing import Any

import pytest
import torch
from torch import Tensor

from caravan.model.attention.reference import ReferenceAttention
from caravan.model.cuda.heads import rotated_queries
from caravan.model.cuda.linear import Int4Linear, packed_int4, product
from caravan.model.cuda.rows import normalize_heads_, normalized, swiglu
from caravan.model.gpu_weights import int4_bytes
from caravan.model.kv_quantization import row_bytes
from caravan.model.linear import Linear
from caravan.model.llama import RMSNorm
from caravan.model.quantization import dequantize, quantize
from caravan.model.rope import apply_rope, rope_table

pytestmark = [pytest.mark.proofs, pytest.mark.usefixtures("as_on_a_gpu")]

DTYPES = [torch.float32, torch.bfloat16]


def assert_close(found: Tensor, expected: Tensor, ulps: float = 2) -> None:
    """Compare with a tolerance of some units in the last place of the dtype."""
    assert found.dtype == expected.dtype
    tolerance = ulps * torch.finfo(found.dtype).eps
    torch.testing.assert_close(found.float(), expected.float(), rtol=tolerance, atol=tolerance)


def numbers(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def rms_norm(width: int, dtype: torch.dtype) -> RMSNorm:
    norm = RMSNorm(width, 1e-5)
    norm.weight.data = 1 + numbers(width, dtype=dtype, seed=3) / 10
    return norm


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [16, 48, 1000])
def test_residual_and_norm_are_those_of_the_plain_model(width: int, dtype: torch.dtype) -> None:
    norm = rms_norm(width, dtype)
    x, added = numbers(3, width, dtype=dtype), numbers(3, width, dtype=dtype, seed=1)
    total, output = normalized(x, added, norm.weight, norm.eps)
    assert torch.equal(total, x + added)
    assert_close(output, norm(x + added))
    same, output = normalized(x, None, norm.weight, norm.eps)
    assert same is x
    assert_close(output, norm(x))


@pytest.mark.parametrize("dtype", DTYPES)
def test_queries_and_keys_are_normalized_head_by_head(dtype: torch.dtype) -> None:
    qkv = numbers(2, 3 + 2 + 2, 12, dtype=dtype)
    query_norm, key_norm = rms_norm(12, dtype), rms_norm(12, dtype)
    key_norm.weight.data = key_norm.weight * 2
    queries, keys, values = qkv.clone().split((3, 2, 2), dim=1)
    normalize_heads_(qkv, 2, query_norm.weight, key_norm.weight, 1e-5)
    assert_close(qkv[:, :3], query_norm(queries))
    assert_close(qkv[:, 3:5], key_norm(keys))
    assert torch.equal(qkv[:, 5:], values)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [88, 1100])
def test_the_gate_is_that_of_the_plain_model(width: int, dtype: torch.dtype) -> None:
    gate_up = 3 * numbers(2, 2 * width, dtype=dtype)
    gate, up = gate_up.chunk(2, dim=-1)
    wide = gate.float()
    assert_close(swiglu(gate_up), (wide / (1 + torch.exp(-wide))).to(dtype) * up)


@pytest.mark.parametrize(("dtype", "pool"), [*((d, d) for d in DTYPES), (torch.bfloat16, torch.int8)], ids=str)
@pytest.mark.parametrize(("num_heads", "num_kv_heads", "head_dim"), [(4, 2, 12), (7, 1, 18), (12, 3, 2)])
def test_rotated_queries_keys_and_values_are_where_the_plain_model_has_them(
    num_heads: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype, pool: torch.dtype
) -> None:
    qkv = numbers(5, num_heads + 2 * num_kv_heads, head_dim, dtype=dtype)
    table = rope_table(head_dim, 50, 10_000.0)
    positions, slots = torch.tensor([0, 7, 8, 49, 3]), torch.tensor([9, 2, 17, 0, 30])
    row = row_bytes(head_dim) if pool == torch.int8 else head_dim
    ours, theirs = ([torch.zeros(4, 8, num_kv_heads, row, dtype=pool) for _ in range(2)] for _ in range(2))
    queries, keys, values = qkv.split((num_heads, num_kv_heads, num_kv_heads), dim=1)
    cos, sin = table[0][positions], table[1][positions]
    ReferenceAttention().write(apply_rope(keys, cos, sin), values, theirs[0], theirs[1], slots)
    found = rotated_queries(qkv, table, positions, slots, ours[0], ours[1])
    assert torch.equal(found, apply_rope(queries, cos, sin))
    assert torch.equal(ours[0], theirs[0])
    assert torch.equal(ours[1], theirs[1])


def test_a_token_that_pads_a_batch_is_not_stored() -> None:
    qkv = numbers(1, 3, 16, dtype=torch.float32)
    keys, values = torch.zeros(2, 1, 1, 16), torch.zeros(2, 1, 1, 16)
    rotated_queries(qkv, rope_table(16, 4, 10_000.0), torch.tensor([0]), torch.tensor([-1]), keys, values)
    assert not keys.any()
    assert not values.any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("num_inputs", "num_outputs"), [(128, 40), (76, 33)])
@pytest.mark.parametrize("has_bias", [True, False])
def test_products_are_those_of_double_precision(
    num_inputs: int, num_outputs: int, dtype: torch.dtype, *, has_bias: bool
) -> None:
    x, weight = numbers(5, num_inputs, dtype=dtype), numbers(num_outputs, num_inputs, dtype=dtype, seed=1)
    bias = numbers(num_outputs, dtype=dtype, seed=2) if has_bias else None
    exact = torch.nn.functional.linear(x.double(), weight.double(), None if bias is None else bias.double())
    found = product(x, weight, bias)
    rounding = 16 * torch.finfo(torch.float32).eps  # of sums as large as the root of their length
    torch.testing.assert_close(product(x, weight, bias, torch.float32), exact.float(), rtol=0, atol=16 * rounding)
    assert_close(found, exact.to(dtype), 2 if dtype == torch.bfloat16 else 256)


@pytest.mark.parametrize("kind", ["bfloat16", "int4"])
def test_a_row_of_a_product_has_the_same_bits_in_tiles_of_every_size(kind: str) -> None:
    x, weight = numbers(530, 96, dtype=torch.bfloat16), numbers(40, 96, dtype=torch.float32, seed=1)
    linear = int4_linear(weight)

    def multiplied(rows: Tensor) -> Tensor:
        return linear(rows) if kind == "int4" else product(rows, weight.bfloat16())

    whole = multiplied(x)
    for rows in (slice(3, 4), slice(60, 130), slice(17, 529)):
        assert torch.equal(multiplied(x[rows]), whole[rows])


def int4_linear(weight: Tensor, bias: Tensor | None = None) -> Int4Linear:
    plain = Linear(weight.shape[1], weight.shape[0], has_bias=bias is not None)
    linear = Int4Linear(plain)
    linear.place(quantize(weight, 4), torch.device("cpu"))
    if bias is not None:
        linear.bias = torch.nn.Parameter(bias, requires_grad=False)
    return linear


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_inputs", [128, 96, 40])
def test_weights_of_4_bits_multiply_as_their_grid_rounded_to_the_dtype(num_inputs: int, dtype: torch.dtype) -> None:
    x, weight = numbers(5, num_inputs, dtype=dtype), numbers(36, num_inputs, dtype=torch.float32, seed=1)
    bias = numbers(36, dtype=dtype, seed=2)
    on_grid = dequantize(quantize(weight, 4)).to(dtype)
    assert torch.equal(int4_linear(weight, bias)(x), product(x, on_grid, bias))


@pytest.mark.parametrize("num_inputs", [128, 96, 40])
def test_packed_weights_of_4_bits_lose_nothing_and_have_the_size_that_is_planned(num_inputs: int) -> None:
    grid = quantize(numbers(6, num_inputs, dtype=torch.float32), 4)
    packed, scales, offsets = packed_int4(grid)
    blocks = packed.view(6, -1, 1, 32)
    values = torch.cat((blocks & 15, blocks >> 4), dim=2).flatten(1)[:, :num_inputs]
    assert torch.equal(values, grid.values)
    groups: Any = grid.scales.shape[1]
    assert torch.equal(scales[:, :groups], grid.scales)
    assert torch.equal(offsets[:, :groups], grid.offsets)
    assert sum(part.nbytes for part in (packed, scales, offsets)) == int4_bytes(6, num_inputs)
