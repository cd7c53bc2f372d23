"""The soft cap: numbers that grow without bound as numbers that do not."""

import torch
from torch import Tensor


def soft_cap(x: Tensor, cap: float) -> Tensor:
    """Return cap tanh(x / cap) for x of any shape in float32: nearly x while |x| is small, and never beyond the cap.

    Source: Gemma 2 (arXiv:2408.00118), section 2, after arXiv:1611.09940. tanh is written out as
    1 - 2 / (1 + exp(2 x)), for the reason for which silu is (model/feed_forward.py).
    """
    return cap - 2 * cap / (1 + torch.exp(x * (2 / cap)))
