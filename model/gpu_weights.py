"""The size of a model's weights on a GPU, found out without importing Triton."""

import math

import torch

from caravan.model.checkpoint.checkpoint import Checkpoint, grid_bits, weight_parts
from caravan.model.quantization import GROUP


def int4_weight_bytes(checkpoint: Checkpoint) -> int:
    """Return the bytes of all weights with those of the layers in 4 bits, as CudaLlama has them.

    Matrices on a grid of 8 bits and all other weights are in bfloat16.
    """
    total = 0
    for name, parts in weight_parts(checkpoint).items():
        num_rows, shape = sum(part.shape[0] for part in parts), parts[0].shape[1:]
        if name.startswith("layers.") and shape and grid_bits(checkpoint, parts) != 8:
            total += int4_bytes(num_rows, shape[0])
        else:
            total += num_rows * math.prod(shape) * torch.bfloat16.itemsize
    return total


def int4_bytes(num_outputs: int, num_inputs: int) -> int:
    """Return the bytes of a matrix in 4 bits, as `packed_int4` in model/cuda/linear.py packs it.

    Inputs are packed 64 at a time, with a scale and an offset in float16 for each 32.
    """
    return num_outputs * math.ceil(num_inputs / (2 * GROUP)) * (GROUP + 2 * 2 * torch.float16.itemsize)
