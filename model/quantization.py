"""Weight matrices in 8 or 4 bits: on a grid with scale and offset (GroupedWeight), or as signed bytes (ByteWeight)."""

from dataclasses import dataclass

import torch
from torch import Tensor

GROUP = 32  # inputs that share a scale and an offset on a grid
BYTE_GROUP = 64  # inputs that share a scale in 8 bits, of a ByteWeight and of a row


@dataclass(frozen=True)
class GroupedWeight:
    """The weight of row n and column k is scales[n, k // 32] * values[n, k] + offsets[n, k // 32].

    With an offset, the grid spans exactly from the least to the largest weight of its group. The grids of GGUF's Q4_0,
    Q4_1 and Q8_0 have this form, so they are kept without loss.
    """

    values: Tensor  # [out, in] uint8, below 2 ** bits
    scales: Tensor  # [out, ceil(in / 32)] float16
    offsets: Tensor  # [out, ceil(in / 32)] float16
    bits: int  # 8 or 4

    @property
    def shape(self) -> torch.Size:
        """The shape of the matrix."""
        return self.values.shape

    def outputs(self, rows: slice) -> "GroupedWeight":
        """Return some of the outputs."""
        return GroupedWeight(self.values[rows], self.scales[rows], self.offsets[rows], self.bits)


def quantize(weight: Tensor, bits: int) -> GroupedWeight:
    """Return weight [out, in] rounded to the nearest of 2 ** bits evenly spaced numbers in each group.

    A group that is too wide for float16 raises ValueError.
    """
    groups = _in_groups(weight.float())  # [out, groups, 32]
    least, largest = groups.aminmax(dim=-1)
    offsets = least.half()
    scales = ((largest - offsets.float()) / (2**bits - 1)).half()
    if not (scales.isfinite().all() and offsets.isfinite().all()):
        raise ValueError("A weight is too large to be quantized.")
    steps = torch.where(scales > 0, scales, 1).float().unsqueeze(-1)
    values = ((groups - offsets.float().unsqueeze(-1)) / steps).round_().clamp_(0, 2**bits - 1)
    return GroupedWeight(values.to(torch.uint8).flatten(1)[:, : weight.shape[1]], scales, offsets, bits)


def dequantize(weight: GroupedWeight) -> Tensor:
    """Return the matrix [out, in] in float32."""
    wide = _in_groups(weight.values.float())  # a copy, changed in place
    wide.mul_(weight.scales.float().unsqueeze(-1)).add_(weight.offsets.float().unsqueeze(-1))
    return wide.flatten(1)[:, : weight.shape[1]]


@dataclass(frozen=True)
class ByteWeight:
    """The weight of row n and column k is scales[n, k // 64] * values[n, k]."""

    values: Tensor  # [out, in] int8, at least -127
    scales: Tensor  # [out, ceil(in / 64)] float16


def to_bytes(weight: Tensor) -> ByteWeight:
    """Return weight [out, in] rounded to multiples of the largest magnitude of its group / 127.

    A group that is too large for float16 raises ValueError.
    """
    groups = _in_groups(weight.float(), BYTE_GROUP)  # [out, groups, 64]
    least, largest = groups.aminmax(dim=-1)
    scales = (torch.maximum(-least, largest) / 127).half()
    if not scales.isfinite().all():
        raise ValueError("A weight is too large to be quantized.")
    inverses = torch.where(scales > 0, 1 / scales.float(), 0).unsqueeze(-1)
    values = (groups * inverses).round_().clamp_(-127, 127).to(torch.int8)
    return ByteWeight(values.flatten(1)[:, : weight.shape[1]], scales)


def from_bytes(weight: ByteWeight) -> Tensor:
    """Return the matrix [out, in] in float32."""
    wide = _in_groups(weight.values.float(), BYTE_GROUP) * weight.scales.float().unsqueeze(-1)
    return wide.flatten(1)[:, : weight.values.shape[1]]


def _in_groups(x: Tensor, size: int = GROUP) -> Tensor:
    """Return x [rows, n] as [rows, ceil(n / size), size]; the padding repeats the last number."""
    missing = -x.shape[1] % size
    if missing:
        x = torch.cat((x, x[:, -1:].expand(-1, missing)), dim=1)
    return x.reshape(len(x), -1, size)
