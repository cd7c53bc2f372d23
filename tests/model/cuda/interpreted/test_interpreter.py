"""The repaired interpreter computes as a GPU does."""

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from caravan.model.cuda.linear import product

pytestmark = pytest.mark.proofs


@triton.jit
def compute(x, y, rounded, added, multiplied, larger, WIDTH: tl.constexpr):
    """Round x from float32, and add, multiply and compare in bfloat16."""
    places = tl.arange(0, WIDTH)
    narrow = tl.load(x + places).to(tl.bfloat16)
    other = tl.load(y + places)
    tl.store(rounded + places, narrow)
    tl.store(added + places, narrow + other)
    tl.store(multiplied + places, narrow * other)
    tl.store(larger + places, (narrow > other).to(tl.int32))


def computed(x: Tensor, y: Tensor) -> list[Tensor]:
    results = [torch.empty(64, dtype=torch.bfloat16) for _ in range(3)]
    larger = torch.empty(64, dtype=torch.int32)
    compute[(1,)](x, y, *results, larger, WIDTH=64)
    return [*results, larger.bool()]


def test_bfloat16_is_rounded_as_torch_does(as_on_a_gpu: None) -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(64, generator=generator), torch.randn(64, generator=generator).bfloat16()
    narrow = x.bfloat16()
    expected = [narrow, narrow + y, narrow * y, narrow > y]
    for found, right in zip(computed(x, y), expected, strict=True):
        assert torch.equal(found, right)


@triton.jit
def multiply(x, weight, output, ROWS: tl.constexpr, INPUTS: tl.constexpr, OUTPUTS: tl.constexpr):
    """Multiply x [ROWS, INPUTS] by weight [INPUTS, OUTPUTS], one tile each."""
    rows, inputs, outputs = tl.arange(0, ROWS)[:, None], tl.arange(0, INPUTS), tl.arange(0, OUTPUTS)[None, :]
    left = tl.load(x + rows * INPUTS + inputs[None, :])
    right = tl.load(weight + inputs[:, None] * OUTPUTS + outputs)
    tl.store(output + rows * OUTPUTS + outputs, tl.dot(left, right, input_precision="ieee"))


def test_a_sum_has_the_same_bits_in_tiles_of_other_sizes(as_on_a_gpu: None) -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(128, 256, generator=generator), torch.randn(256, 32, generator=generator)
    whole, few, one = torch.empty(128, 32), torch.empty(16, 32), torch.empty(1, 32)
    for output in (whole, few, one):
        multiply[(1,)](x, weight, output, ROWS=len(output), INPUTS=256, OUTPUTS=32)
    assert torch.equal(whole[:16], few)
    assert torch.equal(whole[:1], one)


def test_a_row_has_the_same_bits_at_every_place_of_a_tile(as_on_a_gpu: None) -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(128, 64, generator=generator), torch.randn(32, 64, generator=generator)
    assert torch.equal(product(x, weight)[5:], product(x[5:], weight))


def test_a_product_in_bfloat16_is_rounded_once(as_on_a_gpu: None) -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(n, 80, generator=generator).bfloat16() for n in (7, 40))
    exact = x.double() @ weight.double().T
    error = (product(x, weight).double() - exact).abs()
    assert (error <= exact.abs() * 2**-8 * 1.001 + 1e-5).all()  # half of the last bit, and the rounding of the sums
