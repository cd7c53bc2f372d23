"""Random blocks of GGUF files, where any bytes are a block if its numbers are finite, and what they stand for."""

import gguf
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.shapes import float_places, set_float4_scales
from caravan.model.blocks import BLOCK_SIZES, NVFP4_WITH_FACTOR


def random_blocks(kind: str, rows: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Return a matrix [rows, bytes] whose weights are at most about 1 / sqrt(width)."""
    random = np.random.default_rng(seed)
    num_inputs, num_bytes = BLOCK_SIZES[kind]
    blocks = random.integers(0, 256, (rows, width // num_inputs, num_bytes), dtype=np.uint8)
    num_steps = 63 * 64 if num_inputs == 256 else 128
    for place in float_places(kind):
        numbers = random.uniform(-1, 1, blocks.shape[:2]) / num_steps / width**0.5
        blocks[..., place : place + 2] = numbers.astype(np.float16)[..., None].view(np.uint8)
    set_float4_scales(kind, blocks, 1 / 6 / width**0.5, random)
    return blocks.reshape(rows, -1)


def dequantized(kind: str, stored: NDArray[np.uint8]) -> Tensor:
    """Return the matrix that blocks stand for, in float32, as the gguf package computes it."""
    if kind != NVFP4_WITH_FACTOR:
        return torch.from_numpy(gguf.dequantize(stored, gguf.GGMLQuantizationType[kind]))
    blocks = stored.reshape(len(stored), -1, BLOCK_SIZES[kind][1])
    ones = blocks[..., 4:].copy()
    ones[..., 4:] = 0x22  # the number 1 everywhere: what is left are the scales
    scales, numbers = (
        gguf.dequantize(part.reshape(len(stored), -1), gguf.GGMLQuantizationType.NVFP4)
        for part in (ones, np.concatenate((np.full_like(blocks[..., :4], 0x38), blocks[..., 8:]), axis=-1))
    )
    factors = np.ascontiguousarray(blocks[..., :4]).view(np.float32)  # [rows, blocks, 1]
    wide = numbers * (scales.reshape(*factors.shape[:2], -1) * factors).reshape(numbers.shape)
    return torch.from_numpy(wide)
