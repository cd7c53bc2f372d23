"""Matrices of E2M1 numbers in 4 bits, MXFP4 and NVFP4, as compressed-tensors and ModelOpt pack them.

Each byte holds two columns, the even one in its low half. Sources: OCP Microscaling Formats 1.0, the compressed-tensors
package, and vLLM's reader of ModelOpt's files.
"""

import math

import torch
from torch import Tensor

from caravan.model.blocks import NVFP4_WITH_FACTOR
from caravan.model.checkpoint.nibbles import in_halves, look_up_pairs
from caravan.model.checkpoint.stored_matrix import Blocks, QuantizedTensor, ReadRows, StoredMatrix

_MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # of E2M1
_E4M3_NAN = 127
_MAX_E4M3 = 448.0
_MX_GROUP, _NV_GROUP, _NV_BLOCK = 32, 16, 64


def mxfp4_experts(stored: StoredMatrix, word: str) -> QuantizedTensor:
    """Return the matrix of all rows of all experts, [experts * out, in], from the form of gpt-oss's own folders.

    That is X_blocks [experts, out, in / 32, 16] and X_scales [experts, out, in / 32], if the word is X. Source:
    the mxfp4 integration of transformers.
    """
    blocks, scales = f"{word}_blocks", f"{word}_scales"
    num_experts, num_outputs, num_groups, num_bytes = stored.shape(blocks, 4)
    if num_bytes != _MX_GROUP // 2:
        raise stored.broken(f"{blocks} has groups of {2 * num_bytes}; they must be of {_MX_GROUP}")

    def exponents(rows: slice) -> Tensor:
        return stored.load_as(("U8",), scales, num_experts, num_outputs, num_groups).flatten(0, 1)[rows]

    def packed(rows: slice) -> Tensor:
        groups = stored.load_as(("U8",), blocks, num_experts, num_outputs, num_groups, num_bytes)
        return groups.flatten(2).flatten(0, 1)[rows]

    shape = num_experts * num_outputs, num_groups * _MX_GROUP
    return _mxfp4(shape, stored.names(blocks, scales), exponents, packed)


def mxfp4(stored: StoredMatrix) -> QuantizedTensor:
    """Return weight_packed [out, in / 2] with a power of two for each 32 columns, weight_scale [out, in / 32]."""
    num_outputs, num_packed = stored.shape("weight_packed")
    num_inputs, num_groups = 2 * num_packed, -(-2 * num_packed // _MX_GROUP)
    if num_inputs % _MX_GROUP or num_inputs == 0:
        raise stored.broken(f"groups of {_MX_GROUP} do not divide {num_inputs} inputs")

    def exponents(rows: slice) -> Tensor:
        return stored.load_as(("U8", "F8_E8M0"), "weight_scale", num_outputs, num_groups)[rows].view(torch.uint8)

    def packed(rows: slice) -> Tensor:
        return stored.load_as(("U8",), "weight_packed", num_outputs, num_packed)[rows]

    return _mxfp4((num_outputs, num_inputs), stored.names("weight_packed", "weight_scale"), exponents, packed)


def _mxfp4(shape: tuple[int, int], sources: tuple[str, ...], exponents: ReadRows, packed: ReadRows) -> QuantizedTensor:
    """Return a matrix with the exponents of its powers of two, [out, in / 32], and two numbers in each byte."""

    def widen(rows: slice) -> Tensor:
        # As the exponents of float32, where 2^-127 has none; NaN becomes infinity, which is refused, too.
        stated = exponents(rows)
        bits = torch.where(stated == 0, 1 << 22, stated.int() << 23)
        return _widened(packed(rows), bits.view(torch.float32))

    return QuantizedTensor(
        shape=shape,
        sources=sources,
        widen=widen,
        blocks=Blocks(
            kind="MXFP4",
            shape=shape,
            heads=lambda rows: exponents(rows).unsqueeze(-1),
            values=lambda rows: in_halves(packed(rows), _MX_GROUP),
        ),
    )


def nvfp4(stored: StoredMatrix) -> QuantizedTensor:
    """Return a matrix with an E4M3 scale for each 16 columns, weight_scale [out, in / 16], and a factor for all.

    compressed-tensors stores weight_packed [out, in / 2] and the factor's inverse, ModelOpt weight and the factor.
    """
    is_inverse = stored.has("weight_packed")
    leaf, factor_leaf = ("weight_packed", "weight_global_scale") if is_inverse else ("weight", "weight_scale_2")
    num_outputs, num_packed = stored.shape(leaf)
    num_inputs = 2 * num_packed
    if num_inputs % _NV_GROUP or num_inputs == 0:
        raise stored.broken(f"groups of {_NV_GROUP} do not divide {num_inputs} inputs")

    def factored(rows: slice) -> tuple[Tensor, float]:
        """Return the scales of some rows, and the factor."""
        scales = stored.load_as(("F8_E4M3",), "weight_scale", num_outputs, num_inputs // _NV_GROUP)[rows]
        if (scales.view(torch.uint8) >= _E4M3_NAN).any():
            raise stored.broken("weight_scale has numbers that are negative or not finite")
        factor = stored.load_number(factor_leaf)
        if not 0 < factor < math.inf or not fits_float32(1 / factor if is_inverse else factor):
            raise stored.broken(f"{factor_leaf} is {factor}; it and the largest weight must be positive and finite")
        return scales, factor

    def packed(rows: slice) -> Tensor:
        return stored.load_as(("U8",), leaf, num_outputs, num_packed)[rows]

    def widen(rows: slice) -> Tensor:
        scales, factor = factored(rows)
        return _widened(packed(rows), scales.float() / factor if is_inverse else scales.float() * factor)

    def heads(rows: slice) -> Tensor:
        scales, factor = factored(rows)
        head = torch.tensor([1 / factor if is_inverse else factor]).view(torch.uint8)
        parts = (
            head.expand(len(scales), num_inputs // _NV_BLOCK, -1),
            scales.view(torch.uint8).view(len(scales), -1, _NV_BLOCK // _NV_GROUP),
        )
        return torch.cat(parts, dim=-1)

    def values(rows: slice) -> Tensor:
        return in_halves(packed(rows), _NV_GROUP).view(rows.stop - rows.start, -1, _NV_BLOCK // 2)

    shape = num_outputs, num_inputs
    fits = num_inputs % _NV_BLOCK == 0
    return QuantizedTensor(
        shape=shape,
        sources=stored.names(leaf, "weight_scale", factor_leaf, "input_scale", "input_global_scale"),
        widen=widen,
        blocks=Blocks(kind=NVFP4_WITH_FACTOR, shape=shape, heads=heads, values=values) if fits else None,
    )


def fits_float32(factor: float) -> bool:
    """Return whether the largest number of NVFP4 times a factor is finite in float32."""
    return abs(factor) * _MAX_E4M3 * _MAGNITUDES[-1] <= torch.finfo(torch.float32).max


def _widened(packed: Tensor, scales: Tensor) -> Tensor:
    """Return the numbers in `packed` [out, in / 2] times those of `scales` [out, groups], [out, in] in float32."""
    table = torch.tensor((*_MAGNITUDES, *(-number for number in _MAGNITUDES)))
    numbers = look_up_pairs(packed.flatten(), table).view(*scales.shape, -1)
    return numbers.mul_(scales.unsqueeze(-1)).flatten(1)
