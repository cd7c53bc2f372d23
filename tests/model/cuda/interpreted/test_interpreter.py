"""The interpreter computes as a GPU does once it is repaired, and not before."""

from contextlib import nullcontext

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from caravan.model.cuda.linear import product
from tests.support.repaired_interpreter import repaired_interpreter

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


@pytest.mark.parametrize("is_repaired", [True, False])
@pytest.mark.filterwarnings("ignore:.*:RuntimeWarning")  # integers overflow in the one that is not repaired
def test_bfloat16_is_rounded_as_torch_does_only_in_the_repaired_interpreter(*, is_repaired: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(64, generator=generator), torch.randn(64, generator=generator).bfloat16()
    narrow = x.bfloat16()
    expected = [narrow, narrow + y, narrow * y, narrow > y]
    with repaired_interpreter() if is_repaired else nullcontext():
        found = computed(x, y)
    assert [torch.equal(*pair) for pair in zip(found, expected, strict=True)][:3] == [is_repaired] * 3
    assert torch.equal(found[3], expected[3]) or not is_repaired


@pytest.mark.parametrize("is_repaired", [True, False])
def test_a_sum_has_the_same_bits_in_tiles_of_other_sizes_only_in_the_repaired_interpreter(*, is_repaired: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(128, 64, generator=generator), torch.randn(32, 64, generator=generator)
    with repaired_interpreter() if is_repaired else nullcontext():
        whole = product(x, weight)
        shifted = product(x[5:], weight)  # every row at another place in its tile
    assert torch.equal(whole[5:], shifted) == is_repaired


def test_a_product_in_bfloat16_is_rounded_once(as_on_a_gpu: None) -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(n, 80, generator=generator).bfloat16() for n in (7, 40))
    exact = x.double() @ weight.double().T
    error = (product(x, weight).double() - exact).abs()
    assert (error <= exact.abs() * 2**-8 * 1.001 + 1e-5).all()  # half of the last bit, and the rounding of the sums
