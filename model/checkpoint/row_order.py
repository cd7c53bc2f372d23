"""The order of rows inside a head of Q and K: what rotates together is half a head apart in the model."""

import torch
from torch import Tensor


def half_split(rows: Tensor, num_heads: int) -> Tensor:
    """Return the rows of a Q or K matrix (or bias) so that dimension i of a head pairs with i + head_dim / 2.

    In the files, rows 2 i and 2 i + 1 of a head are a pair; see model/rope.py.
    """
    pairs = rows.view(num_heads, -1, 2, *rows.shape[1:])  # [num_heads, head_dim / 2, 2, ...]
    return pairs.transpose(1, 2).reshape(rows.shape)


def interleaved(rows: Tensor, num_heads: int) -> Tensor:
    """Return the rows of a Q or K matrix in the order that `half_split` takes: its inverse."""
    halves = rows.view(num_heads, 2, -1, *rows.shape[1:])  # [num_heads, 2, head_dim / 2, ...]
    return halves.transpose(1, 2).reshape(rows.shape)


def rotated_first(rows: Tensor, num_heads: int, rotary_dim: int) -> Tensor:
    """Return the rows of a Q or K matrix so that dimension i of a head pairs with i + head_dim / 2.

    In the files, i pairs with i + rotary_dim / 2, and the dimensions from rotary_dim on do not rotate. Half of these
    follow the first halves of the pairs here, and half the second ones; see model/rope.py.
    """
    heads = rows.view(num_heads, -1, *rows.shape[1:])
    first, second = heads[:, :rotary_dim].chunk(2, dim=1)
    third, fourth = heads[:, rotary_dim:].chunk(2, dim=1)
    return torch.cat((first, third, second, fourth), dim=1).view(rows.shape)
