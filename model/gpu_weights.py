"""The size of a model's weights on a GPU, found out without importing Triton."""

import math
from typing import Literal

import torch

from caravan.model.checkpoint.checkpoint import Checkpoint, grid_bits, num_parameters, weight_parts
from caravan.model.checkpoint.part import Part
from caravan.model.cuda.packed_layouts import BLOCK_LAYOUTS, BYTES, GRIDS
from caravan.model.share import Share


def gpu_weight_bytes(
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    quantization: Literal["none", "native", "int8", "int4"],
    share: Share | None = None,
) -> int:
    """Return the bytes of all weights, or of one rank's, as CudaLlama has them; what is not packed is in dtype."""
    if quantization == "none":
        return num_parameters(checkpoint, share) * dtype.itemsize
    total = 0
    for name, parts in weight_parts(checkpoint, share).items():
        is_matrix = len(parts[0].shape) > 1
        if quantization == "native" and is_matrix and name != "embedding.weight":
            total += sum(_native_bytes(checkpoint, part, dtype) for part in parts)
        elif quantization != "native" and is_matrix and name.startswith("layers."):
            layout = BYTES if quantization == "int8" else GRIDS[grid_bits(checkpoint, parts) or 4]
            total += layout.num_bytes(sum(part.shape[0] for part in parts), parts[0].shape[1])
        else:
            total += sum(math.prod(part.shape) for part in parts) * dtype.itemsize
    return total


def _native_bytes(checkpoint: Checkpoint, part: Part, dtype: torch.dtype) -> int:
    """Return the bytes of a part of a matrix that is kept as the file has it."""
    kind = checkpoint.blocks.get(part.source)
    return math.prod(part.shape) * dtype.itemsize if kind is None else BLOCK_LAYOUTS[kind].num_bytes(*part.shape)
