"""RMSNorm: what each layer does to its input before it computes with it."""

import torch
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """Scale each token's vector to a root mean square of one, then by a learned weight.

    Unlike LayerNorm it subtracts no mean and adds no bias. Source: arXiv:1910.07467, equation 4.
    """

    def __init__(self, hidden_size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(hidden_size), requires_grad=False)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Return x [T, hidden_size] normalised, in its dtype; the statistics are taken in float32.

        x is rounded to the dtype of the weight before it is multiplied by it, and to its own after that.
        """
        wide = x.float()
        mean_square = wide.pow(2).mean(dim=-1, keepdim=True)  # [T, 1]
        return ((wide * torch.rsqrt(mean_square + self.eps)).to(self.weight.dtype) * self.weight).to(x.dtype)
