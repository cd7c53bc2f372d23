"""The activation of gpt-oss, whose factors are clamped."""

import torch
from torch import Tensor


def clamped_swiglu(gate: Tensor, up: Tensor, limit: float, alpha: float) -> Tensor:
    """Return (up + 1) gate / (1 + exp(-alpha gate)), rounded once; the gate is at most `limit`, up -limit to limit.

    Source: the gpt-oss model card (arXiv:2508.10925), section 2.2, and the code of the model.
    """
    wide = gate.float().clamp(max=limit)
    return ((up.float().clamp(-limit, limit) + 1) * wide / (1 + torch.exp(-alpha * wide))).to(gate.dtype)
