"""What GGUF files have in tensors of their own: the factors of NVFP4 matrices, and the divisors of RoPE."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from gguf import GGMLQuantizationType
from numpy.typing import NDArray
from torch import Tensor

from caravan.model.blocks import BLOCK_SIZES
from caravan.model.checkpoint import BrokenCheckpoint
from caravan.model.checkpoint.packed_float4 import fits_float32

Kinds = Mapping[str, GGMLQuantizationType]
# One divisor for each rotary frequency: always, or for texts beyond the original length and for others (LongRoPE).
ROPE_FREQS, LONG_FACTORS, SHORT_FACTORS = "rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"
_MAX_DIVISORS = 4096


def factor_tensors(path: Path, kinds: Kinds, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
    """Return the tensors of factors, X.scale, by their matrices, X.weight. Raises BrokenCheckpoint.

    A matrix without one has the factor 1. Source: llama.cpp's converter of ModelOpt's files.
    """
    found = {name: f"{_stem(name)}.scale" for name in _matrices(kinds) if f"{_stem(name)}.scale" in shapes}
    for source in found.values():
        if shapes[source] != (1,) or kinds[source] != GGMLQuantizationType.F32:
            raise BrokenCheckpoint(
                f"{path}: {source} has the shape {list(shapes[source])} and the type {kinds[source].name}; "
                "it must be one number in F32."
            )
    return found


def read_factors(path: Path, sources: Mapping[str, str], read: Callable[[str, Tensor], None]) -> dict[str, float]:
    """Return the factors by their matrices; raises BrokenCheckpoint if weights would not be finite."""
    factors: dict[str, float] = {}
    for name, source in sources.items():
        factor = torch.empty(1)
        read(source, factor)
        if not fits_float32(float(factor)):
            raise BrokenCheckpoint(f"{path}: {source} is {float(factor)}; with it weights would not be finite.")
        factors[name] = float(factor)
    return factors


def read_divisors(
    path: Path, shapes: Mapping[str, tuple[int, ...]], read: Callable[[str, Tensor], None]
) -> dict[str, tuple[float, ...]]:
    """Return the divisors of the rotary frequencies by their tensors. Raises BrokenCheckpoint."""
    divisors = {}
    for name in {ROPE_FREQS, LONG_FACTORS, SHORT_FACTORS} & shapes.keys():
        if len(shapes[name]) != 1 or not 1 <= shapes[name][0] <= _MAX_DIVISORS:
            raise BrokenCheckpoint(f"{path}: {name} has the shape {list(shapes[name])}.")
        values = torch.empty(shapes[name], dtype=torch.float64)
        read(name, values)
        divisors[name] = tuple(values.tolist())
    return divisors


def unused_names(kinds: Kinds) -> frozenset[str]:
    """Return the possible names of tensors that are no weights: divisors, factors, and scales for activations."""
    return frozenset(f"{_stem(name)}.{leaf}" for name in _matrices(kinds) for leaf in ("scale", "input_scale")) | {
        *(ROPE_FREQS, LONG_FACTORS, SHORT_FACTORS)
    }


def with_factor(stored: NDArray[np.uint8], factor: float) -> NDArray[np.uint8]:
    """Return a matrix [rows, bytes] in blocks of NVFP4 with the factor before each block."""
    blocks = stored.reshape(len(stored), -1, BLOCK_SIZES["NVFP4"][1])
    head = np.array([factor], np.float32).view(np.uint8)
    return np.concatenate((np.broadcast_to(head, (*blocks.shape[:2], 4)), blocks), axis=-1).reshape(len(stored), -1)


def _matrices(kinds: Kinds) -> list[str]:
    return [name for name, kind in kinds.items() if kind == GGMLQuantizationType.NVFP4]


def _stem(name: str) -> str:
    return name.removesuffix(".weight")
