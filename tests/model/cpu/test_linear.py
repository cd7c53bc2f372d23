"""The kernel of linear layers against the same sums in plain PyTorch."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from caravan.model.cpu.build import build_kernels, load_kernels
from caravan.model.cpu.kernels import WeightFormat
from caravan.model.cpu.levels import LEVELS
from caravan.model.cpu.linear import num_packed_bytes, pack_bfloat16, pack_bytes, pack_grid
from caravan.model.quantization import (
    BYTE_GROUP,
    GROUP,
    ByteWeight,
    GroupedWeight,
    dequantize,
    from_bytes,
    quantize,
    to_bytes,
)

needs_tiles = pytest.mark.skipif(not torch.cpu.get_capabilities().get("amx_bf16"), reason="needs Intel's AMX")
SHAPES = [(96, 64), (33, 30), (1, 8), (88, 48), (160, 1536)]  # outputs, inputs


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Layer:
    """A weight in one format, as the kernel reads it and as a matrix."""

    def __init__(self, kernels: Any, kind: WeightFormat, num_outputs: int, num_inputs: int) -> None:
        weight = random(num_outputs, num_inputs, seed=1) / num_inputs**0.5
        self.kind, self.num_outputs, self.kernels = kind, num_outputs, kernels
        if kind == WeightFormat.BFLOAT16:
            self.matrix, self.packed = weight.bfloat16().float(), pack_bfloat16(weight)
        elif kind == WeightFormat.INT8:
            rounded = to_bytes(weight)
            self.matrix, self.packed = from_bytes(rounded), pack_bytes(rounded)
        else:
            grid = quantize(weight, 8 if kind == WeightFormat.GRID_8 else 4)
            self.matrix, self.packed = dequantize(grid), pack_grid(grid)

    def run(self, x: Tensor, step: str = "", norm: Tensor | None = None, **more: Tensor) -> Tensor:
        out: Tensor = self.kernels.linear(
            x,
            self.packed,
            self.kind.value,
            self.num_outputs,
            step,
            norm,
            1e-5,
            more.get("bias"),
            more.get("residual"),
            "residual" not in more,
        )
        return out

    def expected(self, rows: Tensor) -> Tensor:
        """The product of rows that are ready for it."""
        group = {WeightFormat.INT8: BYTE_GROUP, WeightFormat.GRID_4_INT8: GROUP}.get(self.kind)
        rounded = rows.bfloat16().float() if group is None else _rounded_to_bytes(rows, group)
        return rounded @ self.matrix.T


def _rounded_to_bytes(x: Tensor, group_size: int) -> Tensor:
    """Return x [T, in] in float32, each group rounded to multiples of its largest magnitude / 127."""
    groups = x.float().split(group_size, dim=1)
    scales = [group.abs().amax(dim=1, keepdim=True) / 127 for group in groups]
    return torch.cat([(g / s.where(s > 0, 1)).round() * s for g, s in zip(groups, scales, strict=True)], dim=1)


@pytest.fixture(params=WeightFormat)
def kind(request: pytest.FixtureRequest) -> WeightFormat:
    return WeightFormat(request.param)


@pytest.mark.parametrize(("num_outputs", "num_inputs"), SHAPES)
def test_products_agree(kernels: Any, kind: WeightFormat, num_outputs: int, num_inputs: int) -> None:
    layer = Layer(kernels, kind, num_outputs, num_inputs)
    assert layer.packed.numel() == num_packed_bytes(num_outputs, num_inputs, kind)
    x = random(7, num_inputs).bfloat16()
    bias = random(num_outputs, seed=3).bfloat16()
    expected = layer.expected(x.float())
    # a value between two steps of the grid may be rounded the other way
    tolerance = 0.012 if kind in (WeightFormat.INT8, WeightFormat.GRID_4_INT8) else 1e-5
    torch.testing.assert_close(layer.run(x), expected, atol=tolerance, rtol=1e-4)
    torch.testing.assert_close(layer.run(x, bias=bias), expected + bias.float(), atol=tolerance, rtol=1e-4)


def test_the_norm_swiglu_and_the_residual_are_part_of_it(kernels: Any, kind: WeightFormat) -> None:
    layer = Layer(kernels, kind, 70, 96)
    x, weight, residual = random(9, 96).bfloat16() * 3, random(96, seed=4).bfloat16(), random(9, 70, seed=5).bfloat16()
    wide = x.float()
    normalised = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-5) * weight.float()
    ours = layer.run(x, "rms_norm", weight, residual=residual)
    assert ours.dtype == torch.bfloat16
    torch.testing.assert_close(ours.float(), layer.expected(normalised) + residual.float(), atol=0.05, rtol=0.01)

    gate_up = random(9, 192, seed=6).bfloat16()
    gate, up = gate_up.float().chunk(2, dim=1)
    torch.testing.assert_close(layer.run(gate_up, "swiglu"), layer.expected(F.silu(gate) * up), atol=0.02, rtol=1e-3)


@pytest.mark.parametrize(("num_outputs", "num_inputs"), [(96, 64), (33, 30), (40, 620)])
def test_a_row_has_the_same_bits_among_any_number_of_rows(
    kernels: Any, kind: WeightFormat, num_outputs: int, num_inputs: int
) -> None:
    layer = Layer(kernels, kind, num_outputs, num_inputs)
    x = random(550, num_inputs).bfloat16()
    everything = layer.run(x)
    for num_rows in (1, 2, 3, 4, 5, 6, 7, 8, 13, 16, 17, 31, 32, 33, 96, 97, 128, 129, 300):
        assert torch.equal(torch.cat([layer.run(rows) for rows in x.split(num_rows)]), everything), num_rows


@needs_tiles
def test_tiles_sum_even_and_odd_inputs_apart() -> None:
    layer = Layer(load_kernels(), WeightFormat.BFLOAT16, 48, 96)
    x = random(3, 96).bfloat16()
    total = torch.zeros(3, 48)
    for start in range(0, 96, 32):
        parts = [torch.zeros(3, 48), torch.zeros(3, 48)]
        for i in range(start, start + 32):  # each product is exact in float64, and with it the sum before it is rounded
            product = x[:, i, None].double() * layer.matrix[:, i].double()
            parts[i % 2] = (parts[i % 2].double() + product).float()
        total += parts[0] + parts[1]
    assert torch.equal(layer.run(x), total)


@needs_tiles
def test_bytes_have_the_same_sums_with_and_without_tiles() -> None:
    x = random(40, 200).bfloat16()
    tiled = Layer(load_kernels(), WeightFormat.INT8, 70, 200).run(x)
    (untiled,) = (level for level in LEVELS if level.name == "avx512")
    layer = Layer(build_kernels(untiled.target, untiled.library), WeightFormat.INT8, 70, 200)
    assert torch.equal(tiled, layer.run(x))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_number_that_is_not_finite_changes_its_row_and_no_other(kernels: Any, kind: WeightFormat, bad: float) -> None:
    layer = Layer(kernels, kind, 40, 64)
    x = random(5, 64).bfloat16()
    clean = layer.run(x)
    x[2, 37] = bad
    poisoned = layer.run(x)
    assert not poisoned[2].isfinite().any()
    others = torch.tensor([0, 1, 3, 4])
    assert torch.equal(poisoned[others], clean[others])


def test_rows_of_zeros_give_zeros(kernels: Any, kind: WeightFormat) -> None:
    layer = Layer(kernels, kind, 40, 64)
    assert torch.equal(layer.run(torch.zeros(2, 64, dtype=torch.bfloat16)), torch.zeros(2, 40))


@pytest.mark.parametrize("sign", [1, -1])
def test_extremes_of_bytes_do_not_overflow(kernels: Any, sign: int) -> None:
    weight = ByteWeight(torch.full((32, 64), 127 * sign, dtype=torch.int8), torch.ones(32, 1).half())
    x = torch.full((1, 64), -127.0, dtype=torch.bfloat16)
    out = kernels.linear(x, pack_bytes(weight), "int8", 32, "", None, 0.0, None, None, True)
    assert torch.equal(out, torch.full((1, 32), -127.0 * 127 * sign * 64))


@pytest.mark.parametrize("sign", [1, -1])
def test_extremes_of_nibbles_do_not_overflow(kernels: Any, sign: int) -> None:
    values = torch.full((32, 64), 15, dtype=torch.uint8)
    grid = GroupedWeight(values, torch.ones(32, 2).half(), torch.zeros(32, 2).half(), 4)
    x = torch.full((1, 64), 127.0 * sign, dtype=torch.bfloat16)
    kind = WeightFormat.GRID_4_INT8.value
    out = kernels.linear(x, pack_grid(grid), kind, 32, "", None, 0.0, None, None, True)
    assert torch.equal(out, torch.full((1, 32), 127.0 * 15 * sign * 64))


def test_an_unknown_format_is_an_error(kernels: Any) -> None:
    x = torch.zeros(1, 32, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="there is no format int3"):
        kernels.linear(x, torch.zeros(1, dtype=torch.uint8), "int3", 32, "", None, 0.0, None, None, True)
