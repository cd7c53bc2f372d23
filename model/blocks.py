"""Blocks: matrices as GGUF files store them, some inputs of a row in a few bytes with scales of their own."""

from dataclasses import dataclass, replace
from types import MappingProxyType

from torch import Tensor

NVFP4_WITH_FACTOR = "NVFP4 with a factor"  # in float32, before a block of NVFP4; no type of GGUF
# Kind of block -> its number of inputs, its number of bytes. Source: ggml's ggml-common.h.
BLOCK_SIZES = MappingProxyType(
    {
        "Q4_0": (32, 18),
        "Q4_1": (32, 20),
        "Q5_0": (32, 22),
        "Q5_1": (32, 24),
        "Q8_0": (32, 34),
        "IQ4_NL": (32, 18),
        "MXFP4": (32, 17),
        "NVFP4": (64, 36),
        NVFP4_WITH_FACTOR: (64, 40),
        "Q2_K": (256, 84),
        "Q3_K": (256, 110),
        "Q4_K": (256, 144),
        "Q5_K": (256, 176),
        "Q6_K": (256, 210),
        "IQ4_XS": (256, 136),
    }
)


class NotFinite(ValueError):
    """A weight has numbers that are not finite."""


@dataclass(frozen=True)
class StoredRows:
    """A matrix in blocks, and the order in which its rows are outputs of the model."""

    kind: str  # a key of BLOCK_SIZES
    stored: Tensor  # [rows, bytes of a row] uint8; of a GGUF file, mapped
    order: Tensor  # [out] int64: the row of `stored` for each output

    def outputs(self, rows: slice) -> "StoredRows":
        """Return some of the outputs."""
        return replace(self, order=self.order[rows])


WeightPart = StoredRows | Tensor  # some outputs of a weight; a Tensor is [out, in] in bfloat16
