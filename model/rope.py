"""Rotary position embeddings: a token's position as a rotation of its queries and keys."""

import torch
import torch.nn.functional as F
from torch import Tensor

from caravan.model.rope_scaling import RopeScaling, scale_frequencies


def rope_table(
    head_dim: int,
    max_position: int,
    theta: float,
    scaling: RopeScaling | None = None,
    *,
    rotary_dim: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the cosines and sines of every rotation, each [max_position, head_dim / 2], float32.

    Pair i of a head turns by position * theta ** (-2 i / head_dim): fast for the first pairs, slow for
    the last. Source: RoFormer (arXiv:2104.09864), section 3.2.2. `scaling` changes that for long texts.
    With rotary_dim only its pairs turn, as those of a head of that size; the last pairs turn by no angle.
    """
    rotary_dim = rotary_dim or head_dim
    pair = torch.arange(0, rotary_dim, 2, dtype=torch.float64)
    frequencies = theta ** (-pair / rotary_dim)  # [rotary_dim / 2]
    frequencies, amplitude = scale_frequencies(scaling, frequencies, theta, max_position)
    angles = torch.outer(torch.arange(max_position, dtype=torch.float64), frequencies)  # [max_position, rotary_dim / 2]
    cos, sin = (angles.cos() * amplitude).float(), (angles.sin() * amplitude).float()
    rest = (0, (head_dim - rotary_dim) // 2)
    return F.pad(cos, rest, value=1.0), F.pad(sin, rest)


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Return x [T, heads, head_dim] with each pair of dimensions rotated; same shape and dtype.

    cos and sin are [T, head_dim / 2], the table's rows at the tokens' positions. Dimension i is paired with
    i + head_dim / 2 (the half-split layout; checkpoints in the interleaved layout are converted when loaded).
    The rotation of a pair (a, b) by an angle is (a cos - b sin, b cos + a sin), RoFormer equation 34.
    """
    a, b = x.float().chunk(2, dim=-1)  # each [T, heads, head_dim / 2]
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)  # [T, 1, head_dim / 2]
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(x.dtype)
