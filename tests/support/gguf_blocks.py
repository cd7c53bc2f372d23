"""Random blocks of GGUF files: any bytes are a block if its numbers in float16 are finite."""

import numpy as np
from numpy.typing import NDArray

from benchmarks.shapes import float_places
from caravan.model.blocks import BLOCK_SIZES


def random_blocks(kind: str, rows: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Return a matrix [rows, bytes] whose weights are at most about 1 / sqrt(width)."""
    random = np.random.default_rng(seed)
    num_inputs, num_bytes = BLOCK_SIZES[kind]
    blocks = random.integers(0, 256, (rows, width // num_inputs, num_bytes), dtype=np.uint8)
    num_steps = 63 * 64 if num_inputs == 256 else 128
    for place in float_places(kind):
        numbers = random.uniform(-1, 1, blocks.shape[:2]) / num_steps / width**0.5
        blocks[..., place : place + 2] = numbers.astype(np.float16)[..., None].view(np.uint8)
    return blocks.reshape(rows, -1)
