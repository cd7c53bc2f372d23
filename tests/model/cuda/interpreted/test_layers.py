"""The kernels of a layer against the functions of the plain model."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from benchmarks.gpu_inputs import BLOCK_KINDS, block_linear, packed_linear
from caravan.model.attention.reference import ReferenceAttention
from caravan.model.blocks import BLOCK_SIZES, StoredRows
from caravan.model.cuda import packed_kernels
from caravan.model.cuda.heads import rotated_queries
from caravan.model.cuda.linear import product
from caravan.model.cuda.packed_layouts import GRIDS
from caravan.model.cuda.packed_linear import PackedLinear, PackedQuantization
from caravan.model.cuda.rows import normalize_heads_, normalized, swiglu
from caravan.model.kv_quantization import row_bytes
from caravan.model.linear import Linear
from caravan.model.quantization import dequantize, from_bytes, quantize, to_bytes
from caravan.model.rms_norm import RMSNorm
from caravan.model.rope import apply_rope, rope_table
from tests.support.gguf_blocks import dequantized, random_blocks

pytestmark = [pytest.mark.proofs, pytest.mark.usefixtures("as_on_a_gpu")]

CPU = torch.device("cpu")
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


PACKED: list[PackedQuantization] = ["int4", "int8"]


@pytest.mark.parametrize("kind", ["bfloat16", "int4", "int8", "Q4_K"])
def test_a_row_of_a_product_has_the_same_bits_in_tiles_of_every_size(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With 40 outputs as with as many as have a tile of their own for few rows."""
    x, weight = numbers(530, 256 if kind == "Q4_K" else 96, dtype=torch.bfloat16), numbers(40, 96, dtype=torch.float32)
    linear: Callable[[Tensor], Tensor] = partial(product, weight=weight.bfloat16())
    if kind == "Q4_K":
        linear, _ = block_linear(kind, 40, 256, "cpu")
    elif kind in PACKED:
        linear = packed_linear(weight, "cpu", "int4" if kind == "int4" else "int8")
    whole = linear(x)
    for rows in (slice(3, 4), slice(5, 45), slice(60, 130), slice(17, 529)):
        assert torch.equal(linear(x[rows]), whole[rows])
    monkeypatch.setattr(packed_kernels, "MANY_OUTPUTS", 40)
    assert torch.equal(linear(x[100:116]), whole[100:116])


def on_grid(weight: Tensor, quantization: PackedQuantization) -> Tensor:
    return dequantize(quantize(weight, 4)) if quantization == "int4" else from_bytes(to_bytes(weight))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_inputs", [128, 96, 40])
@pytest.mark.parametrize("quantization", PACKED)
def test_rounded_weights_multiply_as_numbers_of_the_dtype(
    quantization: PackedQuantization, num_inputs: int, dtype: torch.dtype
) -> None:
    x, weight = numbers(5, num_inputs, dtype=dtype), numbers(36, num_inputs, dtype=torch.float32, seed=1)
    bias = numbers(36, dtype=dtype, seed=2)
    linear = packed_linear(weight, "cpu", quantization)
    linear.bias = torch.nn.Parameter(bias, requires_grad=False)
    assert torch.equal(linear(x), product(x, on_grid(weight, quantization).to(dtype), bias))


@pytest.mark.parametrize("num_inputs", [128, 96, 40])
@pytest.mark.parametrize("bits", [4, 8])
def test_a_grid_of_the_file_is_kept_and_has_the_size_that_is_planned(bits: int, num_inputs: int) -> None:
    grid = quantize(numbers(6, num_inputs, dtype=torch.float32), bits)
    linear = PackedLinear(Linear(num_inputs, 6), "int4")
    linear.place(grid, torch.device("cpu"))
    assert torch.equal(linear(torch.eye(num_inputs)).T, dequantize(grid))
    assert sum(part.nbytes for part in linear.packed) == GRIDS[bits].num_bytes(6, num_inputs)


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [*((kind, torch.float32) for kind in BLOCK_SIZES), *((kind, torch.bfloat16) for kind in BLOCK_KINDS)],
)
def test_blocks_multiply_as_the_weights_of_the_file_in_the_dtype(kind: str, dtype: torch.dtype) -> None:
    stored = random_blocks(kind, 24, 512)
    order = torch.arange(24).flip(0)
    linear = PackedLinear(Linear(512, 24), "native")
    linear.place([StoredRows(kind, torch.from_numpy(stored), order)], torch.device("cpu"))
    x, weight = numbers(3, 512, dtype=dtype), dequantized(kind, stored)[order].to(dtype)
    assert torch.equal(linear(x), product(x, weight))
    assert torch.equal(linear(x, torch.float32), product(x, weight, dtype=torch.float32))


@pytest.mark.parametrize("kind", BLOCK_SIZES)
def test_blocks_of_every_kind_are_multiplied_alike_by_tiles_of_all_forms(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tile's form decides on its steps and on the operand that the weights are."""
    linear = PackedLinear(Linear(512, 40), "native")
    linear.place([StoredRows(kind, torch.from_numpy(random_blocks(kind, 40, 512)), torch.arange(40))], CPU)
    x = numbers(513, 512, dtype=torch.bfloat16)
    whole = linear(x)
    for rows in (slice(3, 9), slice(60, 130)):
        assert torch.equal(linear(x[rows]), whole[rows])
    monkeypatch.setattr(packed_kernels, "MANY_OUTPUTS", 40)
    assert torch.equal(linear(x[100:103]), whole[100:103])


def test_parts_of_several_kinds_are_columns_of_one_product() -> None:
    """As the queries, keys and values of a layer: neighbours of one kind are multiplied at once."""
    kinds = ["Q4_K", "Q4_K", None, "Q6_K"]
    matrices = [None if kind is None else random_blocks(kind, 16, 256, seed) for seed, kind in enumerate(kinds)]
    dense = numbers(16, 256, dtype=torch.bfloat16)
    linear = PackedLinear(Linear(256, 64, has_bias=True), "native")
    linear.bias = torch.nn.Parameter(numbers(64, dtype=torch.bfloat16), requires_grad=False)
    linear.place(
        [
            dense if kind is None or stored is None else StoredRows(kind, torch.from_numpy(stored), torch.arange(16))
            for kind, stored in zip(kinds, matrices, strict=True)
        ],
        torch.device("cpu"),
    )
    assert len(linear.parts) == 3
    weight = torch.cat(
        [
            dense if kind is None or stored is None else dequantized(kind, stored).bfloat16()
            for kind, stored in zip(kinds, matrices, strict=True)
        ]
    )
    x = numbers(5, 256, dtype=torch.bfloat16)
    assert torch.equal(linear(x), product(x, weight, linear.bias))
