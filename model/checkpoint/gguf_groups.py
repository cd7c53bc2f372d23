"""The grids of GGUF's Q4_0, Q4_1 and Q8_0 tensors, kept without loss."""

from types import MappingProxyType

import numpy as np
import torch
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from caravan.model.quantization import GROUP, GroupedWeight

GRID_BITS = MappingProxyType({GGMLQuantizationType.Q4_0: 4, GGMLQuantizationType.Q4_1: 4, GGMLQuantizationType.Q8_0: 8})


def grid_bits(kind: str) -> int | None:
    """Return the bits of the grid of a kind of blocks; None if it has none."""
    return next((bits for type_, bits in GRID_BITS.items() if type_.name == kind), None)


def read_groups(stored: NDArray[np.uint8], kind: GGMLQuantizationType) -> GroupedWeight | None:
    """Return the matrix whose rows [out, bytes] are `stored`; None if its offsets do not fit in float16.

    Each group of 32 weights is a float16 scale, in Q4_1 a float16 offset, then the values: 32 signed bytes, or 16 bytes
    with the first 16 values in their low halves. Q4_0 means scale * (q - 8). Source: ggml's ggml-common.h.
    """
    num_head_bytes = 4 if kind == GGMLQuantizationType.Q4_1 else 2
    num_value_bytes = GROUP if kind == GGMLQuantizationType.Q8_0 else GROUP // 2
    groups = stored.reshape(len(stored), -1, num_head_bytes + num_value_bytes)
    head = np.ascontiguousarray(groups[..., :num_head_bytes]).view(np.float16)
    scales = head[..., 0]
    with np.errstate(over="ignore", invalid="ignore"):  # overflows are checked below
        match kind:
            case GGMLQuantizationType.Q4_1:
                offsets = head[..., 1]
            case GGMLQuantizationType.Q4_0:
                offsets = scales * np.float16(-8)
            case _:
                offsets = scales * np.float16(-128)
    if not (np.isfinite(scales).all() and np.isfinite(offsets).all()):
        return None
    quants = groups[..., num_head_bytes:]
    is_signed = kind == GGMLQuantizationType.Q8_0
    values = quants ^ 0x80 if is_signed else np.concatenate((quants & 15, quants >> 4), axis=-1)
    return GroupedWeight(
        values=torch.from_numpy(np.ascontiguousarray(values).reshape(len(stored), -1)),
        scales=torch.from_numpy(np.ascontiguousarray(scales)),
        offsets=torch.from_numpy(np.ascontiguousarray(offsets)),
        bits=GRID_BITS[kind],
    )
