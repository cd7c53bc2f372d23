"""The kernel of linear layers against the same sums in plain PyTorch."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from caravan.model.blocks import BLOCK_SIZES, StoredRows
from caravan.model.cpu.arena import Arena
from caravan.model.cpu.build import build_kernels, load_kernels
from caravan.model.cpu.kernels import WeightFormat
from caravan.model.cpu.levels import LEVELS
from caravan.model.cpu.packing import (
    BLOCK_FORMATS,
    num_packed_bytes,
    pack_bfloat16,
    pack_blocks,
    pack_bytes,
    pack_grid,
)
from caravan.model.quantization import (
    ByteWeight,
    GroupedWeight,
    dequantize,
    from_bytes,
    quantize,
    to_bytes,
)
from tests.support.gguf_blocks import dequantized, random_blocks

needs_tiles = pytest.mark.skipif(not torch.cpu.get_capabilities().get("amx_bf16"), reason="needs Intel's AMX")
SHAPES = [(96, 64), (33, 30), (1, 8), (88, 48), (160, 1536)]  # outputs, inputs
BLOCKS = {weight_format: kind for kind, weight_format in BLOCK_FORMATS.items() if kind not in ("Q4_1", "NVFP4")}


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def inputs_of(kind: WeightFormat, num_inputs: int) -> int:
    """The next number of inputs that the blocks of a format allow."""
    block = BLOCK_SIZES[BLOCKS[kind]][0] if kind in BLOCKS else 1
    return -(-num_inputs // block) * block


class Layer:
    """A weight in one format, as the kernel reads it and as a matrix."""

    def __init__(self, kernels: Any, kind: WeightFormat, num_outputs: int, num_inputs: int) -> None:
        if kind in BLOCKS:
            self._pack_blocks(kernels, kind, num_outputs, num_inputs)
            return
        weight = random(num_outputs, num_inputs, seed=1) / num_inputs**0.5
        self.kind, self.num_outputs, self.kernels = kind, num_outputs, kernels
        if kind == WeightFormat.BFLOAT16:
            self.matrix, self.packed = weight.bfloat16().float(), pack_bfloat16(weight)
        elif kind == WeightFormat.INT8:
            rounded = to_bytes(weight)
            self.matrix, self.packed = from_bytes(rounded), pack_bytes(rounded)
        else:
            grid = quantize(weight, 4 if kind in (WeightFormat.GRID_4, WeightFormat.GRID_4_INT8) else 8)
            self.matrix, self.packed = dequantize(grid), pack_grid(grid)

    def _pack_blocks(self, kernels: Any, kind: WeightFormat, num_outputs: int, num_inputs: int) -> None:
        self.kind, self.num_outputs, self.kernels = kind, num_outputs, kernels
        self.stored = random_blocks(BLOCKS[kind], num_outputs, num_inputs)
        rows = StoredRows(BLOCKS[kind], torch.from_numpy(self.stored), torch.arange(num_outputs))
        self.packed = pack_blocks([rows], num_inputs, kernels, Arena())
        self.matrix = dequantized(BLOCKS[kind], self.stored)

    def run(self, x: Tensor, step: str = "", norm: Tensor | None = None, **more: Tensor) -> Tensor:
        out: Tensor = self.kernels.linear(
            x,
            [self.packed],
            [self.kind.value],
            [self.num_outputs],
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
        if self.kind == WeightFormat.INT8:
            return _rounded_to_bytes(rows) @ self.matrix.T
        is_in_bytes = self.kind in BLOCKS or self.kind == WeightFormat.GRID_4_INT8
        return (_rounded_from_zero_points(rows) if is_in_bytes else rows.bfloat16().float()) @ self.matrix.T


def _rounded_to_bytes(x: Tensor) -> Tensor:
    """Return x [T, in] in float32, each 64 inputs rounded to multiples of their largest magnitude / 127."""
    groups = x.float().split(64, dim=1)
    scales = [group.abs().amax(dim=1, keepdim=True) / 127 for group in groups]
    return torch.cat([(g / s.where(s > 0, 1)).round() * s for g, s in zip(groups, scales, strict=True)], dim=1)


def _rounded_from_zero_points(x: Tensor) -> Tensor:
    """Return x [T, in] in float32, each 32 inputs rounded to one of 255 numbers from the least to the largest."""
    rounded = []
    for group in x.float().split(32, dim=1):
        least, largest = group.aminmax(dim=1, keepdim=True)
        steps, zero_points = (largest / 2 - least / 2) / 127, largest / 2 + least / 2
        rounded.append(((group - zero_points) / steps.where(steps > 0, 1)).round() * steps + zero_points)
    return torch.cat(rounded, dim=1)


@pytest.fixture(params=WeightFormat)
def kind(request: pytest.FixtureRequest) -> WeightFormat:
    return WeightFormat(request.param)


@pytest.mark.parametrize(("num_outputs", "num_inputs"), SHAPES)
def test_products_agree(kernels: Any, kind: WeightFormat, num_outputs: int, num_inputs: int) -> None:
    num_inputs = inputs_of(kind, num_inputs)
    layer = Layer(kernels, kind, num_outputs, num_inputs)
    assert layer.packed.numel() == num_packed_bytes(num_outputs, num_inputs, kind)
    x = random(7, num_inputs).bfloat16()
    bias = random(num_outputs, seed=3).bfloat16()
    expected = layer.expected(x.float())
    # a value between two steps of the grid may be rounded the other way
    tolerance = 0.012 if kind in (WeightFormat.INT8, WeightFormat.GRID_4_INT8, *BLOCKS) else 1e-5
    torch.testing.assert_close(layer.run(x), expected, atol=tolerance, rtol=1e-4)
    torch.testing.assert_close(layer.run(x, bias=bias), expected + bias.float(), atol=tolerance, rtol=1e-4)


def test_the_norm_swiglu_and_the_residual_are_part_of_it(kernels: Any, kind: WeightFormat) -> None:
    n = inputs_of(kind, 96)
    layer = Layer(kernels, kind, 70, n)
    x, weight, residual = random(9, n).bfloat16() * 3, random(n, seed=4).bfloat16(), random(9, 70, seed=5).bfloat16()
    wide = x.float()
    normalised = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-5) * weight.float()
    ours = layer.run(x, "rms_norm", weight, residual=residual)
    assert ours.dtype == torch.bfloat16
    torch.testing.assert_close(ours.float(), layer.expected(normalised) + residual.float(), atol=0.05, rtol=0.01)

    gate_up = random(9, 2 * n, seed=6).bfloat16()
    gate, up = gate_up.float().chunk(2, dim=1)
    torch.testing.assert_close(layer.run(gate_up, "swiglu"), layer.expected(F.silu(gate) * up), atol=0.02, rtol=1e-3)


@pytest.mark.parametrize(("num_outputs", "num_inputs"), [(96, 64), (33, 30), (40, 620)])
def test_a_row_has_the_same_bits_among_any_number_of_rows(
    kernels: Any, kind: WeightFormat, num_outputs: int, num_inputs: int
) -> None:
    num_inputs = inputs_of(kind, num_inputs)
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
@pytest.mark.slow  # it needs another build of the kernels
def test_bytes_have_the_same_sums_with_and_without_tiles() -> None:
    x = random(40, 200).bfloat16()
    tiled = Layer(load_kernels(), WeightFormat.INT8, 70, 200).run(x)
    (untiled,) = (level for level in LEVELS if level.name == "avx512")
    layer = Layer(build_kernels(untiled.target, untiled.library), WeightFormat.INT8, 70, 200)
    assert torch.equal(tiled, layer.run(x))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_number_that_is_not_finite_changes_its_row_and_no_other(kernels: Any, kind: WeightFormat, bad: float) -> None:
    n = inputs_of(kind, 64)
    layer = Layer(kernels, kind, 40, n)
    x = random(5, n).bfloat16()
    clean = layer.run(x)
    x[2, 37] = bad
    poisoned = layer.run(x)
    assert not poisoned[2].isfinite().any()
    others = torch.tensor([0, 1, 3, 4])
    assert torch.equal(poisoned[others], clean[others])


def test_rows_of_zeros_give_zeros(kernels: Any, kind: WeightFormat) -> None:
    n = inputs_of(kind, 64)
    layer = Layer(kernels, kind, 40, n)
    assert torch.equal(layer.run(torch.zeros(2, n, dtype=torch.bfloat16)), torch.zeros(2, 40))


@pytest.mark.parametrize("sign", [1, -1])
def test_extremes_of_bytes_do_not_overflow(kernels: Any, sign: int) -> None:
    weight = ByteWeight(torch.full((32, 64), 127 * sign, dtype=torch.int8), torch.ones(32, 1).half())
    x = torch.full((1, 64), -127.0, dtype=torch.bfloat16)
    out = kernels.linear(x, [pack_bytes(weight)], ["int8"], [32], "", None, 0.0, None, None, True)
    assert torch.equal(out, torch.full((1, 32), -127.0 * 127 * sign * 64))


@pytest.mark.parametrize("sign", [1, -1])
def test_extremes_of_nibbles_do_not_overflow(kernels: Any, sign: int) -> None:
    """The rows of a group are the least byte, then the largest; the weights are 0, then 15."""
    values = torch.full((32, 64), 15, dtype=torch.uint8)
    values.view(32, 4, 16)[:, ::2] = 0
    grid = GroupedWeight(values, torch.ones(32, 2).half(), torch.zeros(32, 2).half(), 4)
    kind = WeightFormat.GRID_4_INT8.value
    out = kernels.linear(extreme_row(sign), [pack_grid(grid)], [kind], [32], "", None, 0.0, None, None, True)
    assert torch.equal(out, torch.full((1, 32), 127.0 * 15 * sign * 32))


@pytest.mark.parametrize("sign", [1, -1])
def test_extremes_of_q8_0_do_not_overflow(kernels: Any, sign: int) -> None:
    stored = np.full((32, 2, 34), 127, dtype=np.uint8)
    stored[:, :, 2:18] = 128  # -128 as a signed byte
    stored[:, :, :2] = np.ones(1, np.float16).view(np.uint8)
    rows = StoredRows("Q8_0", torch.from_numpy(stored.reshape(32, 68)), torch.arange(32))
    packed = pack_blocks([rows], 64, kernels, Arena())
    out = kernels.linear(extreme_row(sign), [packed], ["Q8_0"], [32], "", None, 0.0, None, None, True)
    assert torch.equal(out, torch.full((1, 32), 127.0 * (128 + 127) * sign * 32))


def extreme_row(sign: int) -> Tensor:
    """Sixteen times the least byte, then sixteen times the largest, and again; or the other way round."""
    x = torch.full((1, 64), 127.0 * sign, dtype=torch.bfloat16)
    x.view(4, 16)[::2] = -127.0 * sign
    return x


def test_parts_of_a_weight_stand_side_by_side(kernels: Any) -> None:
    """Each part has its columns of the bias and of the residual."""
    layers = [Layer(kernels, kind, n, 256) for kind, n in ((WeightFormat.Q4_K, 40), (WeightFormat.BFLOAT16, 7))]
    x, bias, residual = random(5, 256).bfloat16(), random(47, seed=2).bfloat16(), random(5, 47, seed=3).bfloat16()
    both = kernels.linear(
        x,
        [layer.packed for layer in layers],
        [layer.kind.value for layer in layers],
        [layer.num_outputs for layer in layers],
        "",
        None,
        0.0,
        bias,
        residual,
        False,
    )
    parts = [
        layer.run(x, bias=bias[columns].contiguous(), residual=residual[:, columns].contiguous())
        for layer, columns in zip(layers, (slice(0, 40), slice(40, 47)), strict=True)
    ]
    assert torch.equal(both, torch.cat(parts, dim=1))


def test_an_unknown_format_is_an_error(kernels: Any) -> None:
    x = torch.zeros(1, 32, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="there is no format int3"):
        kernels.linear(x, [torch.zeros(1, dtype=torch.uint8)], ["int3"], [32], "", None, 0.0, None, None, True)
