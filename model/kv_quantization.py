"""Keys and values in 8 bits: a row of the pool holds the numbers of one head and, in its last 4 bytes, their scale."""

import torch
from torch import Tensor

_SCALE_BYTES = torch.float32.itemsize
_QUAD = 4  # numbers that one product of bytes multiplies; rows are padded to a multiple


def row_bytes(head_dim: int) -> int:
    """Return the size of a key or value of one head."""
    return -(-head_dim // _QUAD) * _QUAD + _SCALE_BYTES


def quantize_heads(x: Tensor) -> Tensor:
    """Return rows [..., row_bytes(head_dim)] int8 for x [..., head_dim]: multiples of its largest magnitude / 127."""
    wide = x.float()
    largest = wide.abs().amax(dim=-1, keepdim=True)
    inverse = torch.where(largest == 0, 0.0, 127 / largest)
    rows = torch.zeros(*x.shape[:-1], row_bytes(x.shape[-1]), dtype=torch.int8, device=x.device)
    rows[..., : x.shape[-1]] = (wide * inverse).round().nan_to_num(0).to(torch.int8)
    rows[..., -_SCALE_BYTES:] = (largest / 127).view(torch.int8)
    return rows


def dequantize_heads(rows: Tensor, head_dim: int) -> Tensor:
    """Return the numbers [..., head_dim] in float32."""
    scales = rows[..., -_SCALE_BYTES:].contiguous().view(torch.float32)
    return rows[..., :head_dim] * scales
