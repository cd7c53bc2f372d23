"""The numbers, scales and offsets in the blocks of GGUF files, read with PyTorch on any device.

A weight is factor * scale * (number - zero) + offset_factor * offset; the zero is that of model/cuda/packed_layouts.py.
Source of all kinds: ggml's ggml-common.h and ggml-quants.c.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from caravan.model.blocks import BLOCK_SIZES, NVFP4_WITH_FACTOR
from caravan.model.cuda.packed_layouts import SIGN

# Places of 4 bits -> 128 + the number in IQ4_NL and IQ4_XS, 128 + twice the number in E2M1.
_IQ4 = (1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241)
_E2M1 = (128, 129, 130, 131, 132, 134, 136, 140, 128, 127, 126, 125, 124, 122, 120, 116)
# Byte of a scale -> half of it, as the numbers are doubled: in E8M0, where greater ones leave no room for the largest
# number, and in E4M3 without a sign, where the bits of NaN are 0.
_E8M0 = tuple(2.0 ** (byte - 128) if byte <= 252 else float("inf") for byte in range(256))
_E4M3 = tuple(
    0.0 if byte == 0x7F else (1 + byte % 8 / 8) * 2.0 ** (exponent - 8) if exponent else byte % 8 * 2.0**-10
    for byte in range(256)
    for exponent in (byte >> 3 & 15,)
)


@dataclass(frozen=True)
class BlockNumbers:
    """Blocks [rows, blocks] of one kind, or rows of another source as one block each."""

    numbers: Tensor  # [rows, blocks, inputs of a block] uint8
    scales: Tensor  # [rows, blocks, groups]; with factors, whole numbers in uint8, signed ones + 128
    offsets: Tensor | None = None  # like scales
    factors: Tensor | None = None  # [rows, blocks, 1] float16
    offset_factors: Tensor | None = None

    def are_finite(self) -> bool:
        """Return whether all scales and factors are finite numbers; the host waits for the answer."""
        parts = (self.scales, self.offsets, self.factors, self.offset_factors)
        return all(bool(part.isfinite().all()) for part in parts if part is not None)


def block_numbers(kind: str, stored: Tensor) -> BlockNumbers:
    """Return what the blocks of a matrix [rows, bytes] uint8 hold."""
    return _READERS[kind](_split(stored, -1, BLOCK_SIZES[kind][1]))


def _q4_0(blocks: Tensor) -> BlockNumbers:
    return BlockNumbers(_nibbles(blocks[..., 2:]), _half(blocks, 0))


def _q4_1(blocks: Tensor) -> BlockNumbers:
    return BlockNumbers(_nibbles(blocks[..., 4:]), _half(blocks, 0), _half(blocks, 2))


def _q5_0(blocks: Tensor) -> BlockNumbers:
    return BlockNumbers(_nibbles(blocks[..., 6:]) | _fifth_bits(blocks[..., 2:6]), _half(blocks, 0))


def _q5_1(blocks: Tensor) -> BlockNumbers:
    numbers = _nibbles(blocks[..., 8:]) | _fifth_bits(blocks[..., 4:8])
    return BlockNumbers(numbers, _half(blocks, 0), _half(blocks, 2))


def _q8_0(blocks: Tensor) -> BlockNumbers:
    return BlockNumbers(blocks[..., 2:] ^ 128, _half(blocks, 0))


def _iq4_nl(blocks: Tensor) -> BlockNumbers:
    return BlockNumbers(_from_table(_nibbles(blocks[..., 2:]), _IQ4), _half(blocks, 0))


def _mxfp4(blocks: Tensor) -> BlockNumbers:
    scales = _from_table(blocks[..., :1], _E8M0, torch.bfloat16)
    return BlockNumbers(_from_table(_nibbles(blocks[..., 1:]), _E2M1), scales)


def _nvfp4(blocks: Tensor) -> BlockNumbers:
    numbers = _nibbles(_split(blocks[..., 4:], 4, 8)).flatten(-2)  # 16 inputs have 8 bytes
    return BlockNumbers(_from_table(numbers, _E2M1), _from_table(blocks[..., :4], _E4M3, torch.float16))


def _nvfp4_with_factor(blocks: Tensor) -> BlockNumbers:
    plain = _nvfp4(blocks[..., 4:])
    factors = blocks[..., :4].contiguous().view(torch.float32)  # [rows, blocks, 1]
    return BlockNumbers(plain.numbers, plain.scales.float() * factors)


def _q2_k(blocks: Tensor) -> BlockNumbers:
    scales = blocks[..., :16]
    return BlockNumbers(_pairs(blocks[..., 16:80]), scales & 15, scales >> 4, _half(blocks, 80), -_half(blocks, 82))


def _q3_k(blocks: Tensor) -> BlockNumbers:
    numbers = _pairs(blocks[..., 32:96]) | _planes(blocks[..., :32], range(8), 1) << 2
    scales = _nibbles(blocks[..., 96:104]) | _planes(blocks[..., 104:108], (0, 2, 4, 6), 3) << 4  # + 32
    return BlockNumbers(numbers, scales + (SIGN - 32), None, _half(blocks, 108))


def _q4_k(blocks: Tensor) -> BlockNumbers:
    numbers = _nibbles(_split(blocks[..., 16:], 4, 32)).flatten(-2)
    return BlockNumbers(numbers, *_k_scales(blocks))


def _q5_k(blocks: Tensor) -> BlockNumbers:
    low = _nibbles(_split(blocks[..., 48:], 4, 32)).flatten(-2)
    return BlockNumbers(low | _planes(blocks[..., 16:48], range(8), 1) << 4, *_k_scales(blocks))


def _q6_k(blocks: Tensor) -> BlockNumbers:
    low = _nibbles(_split(blocks[..., :128], 2, 64)).flatten(-2)
    return BlockNumbers(low | _pairs(blocks[..., 128:192]) << 4, blocks[..., 192:208] ^ SIGN, None, _half(blocks, 208))


def _iq4_xs(blocks: Tensor) -> BlockNumbers:
    low = _planes(blocks[..., 4:8].unsqueeze(-1), (0, 4), 15).flatten(-2)
    high = _planes(blocks[..., 2:4].unsqueeze(-1), (0, 2, 4, 6), 3).flatten(-2)
    numbers = _nibbles(_split(blocks[..., 8:], 8, 16)).flatten(-2)
    return BlockNumbers(_from_table(numbers, _IQ4), (low | high << 4) + (SIGN - 32), None, _half(blocks, 0))


def _k_scales(blocks: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return scales and offsets [rows, blocks, 8] of Q4_K or Q5_K, and their factors."""
    first, second, third = blocks[..., 4:8], blocks[..., 8:12], blocks[..., 12:16]
    scales = torch.cat((first & 63, third & 15 | first >> 6 << 4), dim=-1)
    offsets = torch.cat((second & 63, third >> 4 | second >> 6 << 4), dim=-1)
    return scales, offsets, _half(blocks, 0), -_half(blocks, 2)


def _split(stored: Tensor, *sizes: int) -> Tensor:
    """Return stored [..., n] with its last dimension divided, [..., *sizes]."""
    return stored.reshape(*stored.shape[:-1], *sizes)


def _half(blocks: Tensor, place: int) -> Tensor:
    """Return the float16 [rows, blocks, 1] at a place of each block."""
    return blocks[..., place : place + 2].contiguous().view(torch.float16)


def _planes(stored: Tensor, shifts: tuple[int, ...] | range, mask: int) -> Tensor:
    """Return (stored [..., n] >> shift) & mask, for one shift after the other, [..., shifts * n]."""
    return torch.cat([stored >> shift & mask for shift in shifts], dim=-1)


def _nibbles(stored: Tensor) -> Tensor:
    return _planes(stored, (0, 4), 15)


def _pairs(stored: Tensor) -> Tensor:
    """Return the 256 numbers of 2 bits in 64 bytes, of which each 32 have 128."""
    return _planes(_split(stored, 2, 32), (0, 2, 4, 6), 3).flatten(-2)


def _fifth_bits(stored: Tensor) -> Tensor:
    """Return 16 for each input j with bit j of 32 set."""
    return _planes(stored.unsqueeze(-1), range(8), 1).flatten(-2) << 4


def _from_table(places: Tensor, table: tuple[float, ...], dtype: torch.dtype = torch.uint8) -> Tensor:
    return torch.tensor(table, dtype=dtype, device=places.device)[places.int()]


_READERS: Mapping[str, Callable[[Tensor], BlockNumbers]] = MappingProxyType(
    {
        "Q4_0": _q4_0,
        "Q4_1": _q4_1,
        "Q5_0": _q5_0,
        "Q5_1": _q5_1,
        "Q8_0": _q8_0,
        "IQ4_NL": _iq4_nl,
        "MXFP4": _mxfp4,
        "NVFP4": _nvfp4,
        NVFP4_WITH_FACTOR: _nvfp4_with_factor,
        "Q2_K": _q2_k,
        "Q3_K": _q3_k,
        "Q4_K": _q4_k,
        "Q5_K": _q5_k,
        "Q6_K": _q6_k,
        "IQ4_XS": _iq4_xs,
    }
)
