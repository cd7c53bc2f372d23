"""Grids of 8 and 4 bits, and those that GGUF files come with."""

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType

from caravan.model.checkpoint.gguf_groups import GRID_BITS, fits_float16, read_groups
from caravan.model.quantization import dequantize, from_bytes, quantize, to_bytes


@pytest.mark.parametrize("kind", GRID_BITS)
def test_the_grids_of_gguf_are_taken_over_without_loss(kind: GGMLQuantizationType) -> None:
    values = np.random.default_rng(0).standard_normal((48, 96), dtype=np.float32)
    stored = gguf.quantize(values, kind)
    assert fits_float16(stored, kind)
    grid = read_groups(stored, kind)
    assert grid.bits == GRID_BITS[kind]
    assert grid.shape == (48, 96)
    assert torch.equal(dequantize(grid), torch.from_numpy(gguf.dequantize(stored, kind)))


@pytest.mark.parametrize("bits", [8, 4])
def test_a_quantized_weight_is_off_by_half_a_step_at_most(bits: int) -> None:
    weight = torch.randn(40, 70, generator=torch.Generator().manual_seed(0))
    error = (dequantize(quantize(weight, bits)) - weight).abs()
    width = weight.max() - weight.min()
    assert error.max() < 0.51 * width / (2**bits - 1) + 0.002  # and what float16 rounds of scale and offset
    assert dequantize(quantize(torch.full((2, 32), 0.5), bits)).unique().tolist() == [0.5]


def test_four_bits_lie_on_steps_of_eight() -> None:
    weight = dequantize(quantize(torch.randn(8, 64, generator=torch.Generator().manual_seed(0)), 4))
    torch.testing.assert_close(dequantize(quantize(weight, 8)), weight, atol=3e-3, rtol=0)  # a step of 4 bits is 0.2


def test_a_weight_in_bytes_is_off_by_half_a_step_at_most() -> None:
    weight = torch.randn(40, 150, generator=torch.Generator().manual_seed(0))
    rounded = to_bytes(weight)
    assert rounded.values.dtype == torch.int8
    assert rounded.values.abs().max() == 127
    steps = rounded.scales.float().repeat_interleave(64, dim=1)[:, :150]
    assert ((from_bytes(rounded) - weight).abs() <= 0.53 * steps).all()  # float16 rounds the steps, too
    assert not from_bytes(to_bytes(torch.zeros(2, 64))).any()


def test_weights_beyond_float16_are_refused() -> None:
    too_large = torch.tensor([[1e8, -1e8]])
    with pytest.raises(ValueError, match="too large to be quantized"):
        quantize(too_large, 8)
    with pytest.raises(ValueError, match="too large to be quantized"):
        to_bytes(too_large)


def test_a_grid_whose_offsets_overflow_is_left_to_the_dequantizer() -> None:
    stored = gguf.quantize(np.full((1, 32), 6e5, dtype=np.float32), GGMLQuantizationType.Q8_0)
    assert not fits_float16(stored, GGMLQuantizationType.Q8_0)
