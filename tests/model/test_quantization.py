"""Grids of 8 and 4 bits, and those that GGUF files come with."""

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType

from model.checkpoint.gguf_groups import GRID_BITS, read_groups
from model.quantization import dequantize, quantize


@pytest.mark.parametrize("kind", GRID_BITS)
def test_the_grids_of_gguf_are_taken_over_without_loss(kind: GGMLQuantizationType) -> None:
    values = np.random.default_rng(0).standard_normal((48, 96), dtype=np.float32)
    stored = gguf.quantize(values, kind)
    grid = read_groups(stored, kind)
    assert grid is not None
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


def test_weights_beyond_float16_are_refused() -> None:
    with pytest.raises(ValueError, match="too large to be quantized"):
        quantize(torch.tensor([[1e6, -1e6]]), 8)


def test_a_grid_whose_offsets_overflow_is_left_to_the_dequantizer() -> None:
    stored = gguf.quantize(np.full((1, 32), 6e5, dtype=np.float32), GGMLQuantizationType.Q8_0)
    assert read_groups(stored, GGMLQuantizationType.Q8_0) is None
