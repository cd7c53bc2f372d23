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


def read_groups(stored: NDArray[np.uint8], kind: GGMLQuantizationType) -> GroupedWeight:
    """Return the matrix whose rows [out, bytes] are `stored`; `fits_float16` tells whether there is one.

    Each group of 32 weights is a float16 scale, in Q4_1 a float16 offset, then the values: 32 signed bytes, or 16 bytes
    with the first 16 values in their low halves. Q4_0 means scale * (q - 8). Source: ggml's ggml-common.h.
    """
    scales, offsets = _scales_and_offsets(_heads(stored, kind), kind)
    quants = _groups(stored, kind)[..., _num_head_bytes(kind) :]
    is_signed = kind == GGMLQuantizationType.Q8_0
    values = quants ^ 0x80 if is_signed else np.concatenate((quants & 15, quants >> 4), axis=-1)
    return GroupedWeight(
        values=torch.from_numpy(np.ascontiguousarray(values).reshape(len(values), -1)),
        scales=torch.from_numpy(np.ascontiguousarray(scales)),
        offsets=torch.from_numpy(np.ascontiguousarray(offsets)),
        bits=GRID_BITS[kind],
    )


def fits_float16(stored: NDArray[np.uint8], kind: GGMLQuantizationType) -> bool:
    """Return whether all scales and offsets of a matrix are finite in float16."""
    return heads_fit_float16(_heads(stored, kind), kind)


def heads_fit_float16(heads: NDArray[np.uint8], kind: GGMLQuantizationType) -> bool:
    """Return the same for the bytes before the values of each group, [out, groups, bytes]."""
    return all(bool(np.isfinite(numbers).all()) for numbers in _scales_and_offsets(heads, kind))


def _heads(stored: NDArray[np.uint8], kind: GGMLQuantizationType) -> NDArray[np.uint8]:
    return np.ascontiguousarray(_groups(stored, kind)[..., : _num_head_bytes(kind)])


def _scales_and_offsets(
    heads: NDArray[np.uint8], kind: GGMLQuantizationType
) -> tuple[NDArray[np.float16], NDArray[np.float16]]:
    """Return the scales and the offsets of all groups, each [out, groups]."""
    head = heads.view(np.float16)
    scales = head[..., 0]
    if kind == GGMLQuantizationType.Q4_1:
        return scales, head[..., 1]
    with np.errstate(over="ignore", invalid="ignore"):  # fits_float16 finds overflows
        return scales, scales * np.float16(-8 if kind == GGMLQuantizationType.Q4_0 else -128)


def _groups(stored: NDArray[np.uint8], kind: GGMLQuantizationType) -> NDArray[np.uint8]:
    """Return the bytes of each group, [out, groups, bytes]."""
    num_value_bytes = GROUP if kind == GGMLQuantizationType.Q8_0 else GROUP // 2
    return stored.reshape(len(stored), -1, _num_head_bytes(kind) + num_value_bytes)


def _num_head_bytes(kind: GGMLQuantizationType) -> int:
    return 4 if kind == GGMLQuantizationType.Q4_1 else 2
