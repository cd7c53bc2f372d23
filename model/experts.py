"""Experts: several feed-forward networks in one layer, of which a router chooses a few for each token.

Shapes: T tokens in the step (of all sequences, end to end), E experts, k of them chosen for each token.
"""

import torch
from torch import Tensor, nn

from caravan.model.config import ModelConfig
from caravan.model.feed_forward import FeedForward
from caravan.model.linear import Linear


class Experts(nn.Module):
    """A mixture of experts (arXiv:1701.06538). Source: Mixtral (arXiv:2401.04088), section 2.1, and OLMoE.

    What a token gets is the sum of what its experts return, each times its weight. A step computes an expert once, for
    all rows that chose it, and not at all if none did. The sum is in the order of a token's choices, so the bits of its
    row do not depend on which rows share its experts.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.num_chosen, self.normalizes_weights = config.num_chosen_experts, config.normalizes_expert_weights
        self.router = Linear(config.hidden_size, config.num_experts, has_bias=config.has_expert_bias)
        self.experts = nn.ModuleList(FeedForward(config) for _ in range(config.num_experts))

    def forward(self, x: Tensor) -> Tensor:
        """Return [T, hidden_size] for x [T, hidden_size]."""
        chosen, weights = choose_experts(self.router(x), self.num_chosen, normalizes_weights=self.normalizes_weights)
        choices = chosen.flatten().argsort(stable=True)  # [T * k]: rows times k, plus rank, those of an expert together
        counts = chosen.flatten().bincount(minlength=len(self.experts)).tolist()
        returned = x.new_empty(chosen.numel(), x.shape[1])
        for expert, some in zip(self.experts, torch.split(choices, counts), strict=True):
            if len(some):
                returned[some] = expert(x[some // self.num_chosen])
        ranked = returned.view(*chosen.shape, -1).float() * weights.unsqueeze(-1)  # [T, k, hidden_size]
        return _sum_in_order(ranked).to(x.dtype)


def choose_experts(logits: Tensor, num_chosen: int, *, normalizes_weights: bool) -> tuple[Tensor, Tensor]:
    """Return the experts of each row and their weights, both [T, k] and the likeliest first, for logits [T, E].

    A weight is the expert's probability among all experts, which is divided by the sum of those of the row's experts if
    it `normalizes_weights`: that is the softmax over the row's experts alone. Of two equal logits the first is taken.
    """
    wide = logits.float()
    chosen = wide.argsort(dim=-1, descending=True, stable=True)[:, :num_chosen]
    weights = wide.softmax(dim=-1).gather(1, chosen)
    return chosen, weights / _sum_in_order(weights.unsqueeze(-1)) if normalizes_weights else weights


def _sum_in_order(ranked: Tensor) -> Tensor:
    """Return the sum over k of [T, k, n], one after the other: torch may sum in another order for another T."""
    total = ranked[:, 0]
    for rank in range(1, ranked.shape[1]):
        total = total + ranked[:, rank]
    return total
