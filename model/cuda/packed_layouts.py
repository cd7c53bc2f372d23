"""How a GPU has weights of few bits in its memory. It imports no Triton."""

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import torch

from caravan.model.blocks import NVFP4_WITH_FACTOR

STEP = 128  # inputs of the longest step of a product; rows are padded to whole steps
WORD_INPUTS = 64  # whose scales and offsets are a word, where there are factors
SUPERBLOCK = 256  # inputs that share the factor of their scales and that of their offsets
SIGN = 128  # is added to signed scales
FEW_ROWS = 16  # and fewer rows of x, and MANY_OUTPUTS or more of a weight, have a tile of their own
MANY_OUTPUTS = 8192


class PackedLayout(NamedTuple):
    """The memory of a weight [out, in].

    A weight is scale * (number - zero) + offset, where a scale and an offset belong to a group of inputs. A number has
    4 or 8 bits, so a word of 32 bits has 8 or 4. Four words have the numbers of 32 or 16 inputs: word `lane` those
    that one of four lanes of a matrix instruction multiplies, which are inputs 8 * i + 2 * lane and the one after it.
    Its low half has the first of each pair, by i, and its high half the second.

    Without factors, scales are floating-point numbers; with an offset, both are float16 in one word, the offset in the
    high half. With factors, a scale is a whole number times the factor of 256 inputs, and so is an offset. The whole
    numbers of 64 inputs are one word: scales from its lowest bit on, offsets from bit 16 on. The factors of 256 inputs
    are two numbers in float16.
    """

    bits: int  # of a number: 4 or 8, unsigned
    group: int  # inputs that share a scale: 16, 32 or 64
    zero: int = 0
    has_offsets: bool = False
    has_factors: bool = False
    scale_dtype: torch.dtype = torch.float16  # of scales without factors; with offsets float16

    @property
    def scale_bits(self) -> int:
        """The bits of a scale and of an offset in a word; signed scales have 8."""
        return 16 * self.group // WORD_INPUTS if self.has_offsets else 8

    def num_bytes(self, num_outputs: int, num_inputs: int) -> int:
        """Return the bytes of a matrix."""
        width = padded_inputs(num_inputs)
        if self.has_factors:
            scale_bytes = 4 * width // WORD_INPUTS + 4 * math.ceil(num_inputs / SUPERBLOCK)
        else:
            scale_bytes = width // self.group * self.scale_dtype.itemsize * (2 if self.has_offsets else 1)
        return num_outputs * (width * self.bits // 8 + scale_bytes)


def padded_inputs(num_inputs: int) -> int:
    """Return the inputs of whole steps."""
    return math.ceil(num_inputs / STEP) * STEP


BYTES = PackedLayout(8, 64, zero=128)  # ByteWeight
GRIDS: Mapping[int, PackedLayout] = MappingProxyType(  # bits of a GroupedWeight -> its layout
    {bits: PackedLayout(bits, 32, has_offsets=True) for bits in (4, 8)}
)
# Kind of blocks -> the layout that keeps it without loss. Numbers of 5 and 6 bits have a byte, and so have those of a
# table, which are looked up before.
BLOCK_LAYOUTS: Mapping[str, PackedLayout] = MappingProxyType(
    {
        "Q4_0": PackedLayout(4, 32, zero=8),
        "Q4_1": GRIDS[4],
        "Q5_0": PackedLayout(8, 32, zero=16),
        "Q5_1": GRIDS[8],
        "Q8_0": PackedLayout(8, 32, zero=128),
        "IQ4_NL": PackedLayout(8, 32, zero=128),
        "MXFP4": PackedLayout(8, 32, zero=128, scale_dtype=torch.bfloat16),
        "NVFP4": PackedLayout(8, 16, zero=128),
        NVFP4_WITH_FACTOR: PackedLayout(8, 16, zero=128, scale_dtype=torch.float32),
        "Q2_K": PackedLayout(4, 16, has_offsets=True, has_factors=True),
        "Q3_K": PackedLayout(4, 16, zero=4, has_factors=True),
        "Q4_K": PackedLayout(4, 32, has_offsets=True, has_factors=True),
        "Q5_K": PackedLayout(8, 32, has_offsets=True, has_factors=True),
        "Q6_K": PackedLayout(8, 16, zero=32, has_factors=True),
        "IQ4_XS": PackedLayout(8, 32, zero=128, has_factors=True),
    }
)
