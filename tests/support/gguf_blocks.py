"""Random blocks of GGUF files: any bytes are a block if its numbers in float16 are finite."""

from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from caravan.model.blocks import BLOCK_SIZES

# Where a block has numbers in float16; the others have one, at the start.
_FLOAT_PLACES = MappingProxyType(
    {"Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "Q4_1": (0, 2), "Q5_1": (0, 2)}
)


def float_places(kind: str) -> tuple[int, ...]:
    """Return where a block has numbers in float16."""
    return _FLOAT_PLACES.get(kind, (0,))


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
