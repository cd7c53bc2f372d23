"""The feed-forward network of a layer: each token's vector alone, through a wider one and back.

Shapes: T tokens in the step (of all sequences, end to end).
"""

import math

import torch
from torch import Tensor, nn

from caravan.model.clamped_swiglu import clamped_swiglu
from caravan.model.config import ModelConfig
from caravan.model.gather import Gather, not_split
from caravan.model.linear import Linear


class FeedForward(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x)). Source: GLU Variants Improve Transformer (arXiv:2002.05202), equation 6.

    Gemma has GEGLU: gelu in the place of silu. gpt-oss has biases and clamps both factors.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        has_bias = config.has_expert_bias
        self.gate_up = Linear(config.hidden_size, 2 * config.intermediate_size, has_bias=has_bias)  # gate, then up rows
        self.down = Linear(config.intermediate_size, config.hidden_size, has_bias=has_bias)
        self.activation = gelu if config.has_geglu else silu
        self.limit, self.alpha = config.swiglu_limit, config.swiglu_alpha
        self.gather_inner: Gather = not_split
        self.gather_output: Gather = not_split

    def forward(self, x: Tensor) -> Tensor:
        """Return [T, hidden_size] for x [T, hidden_size]."""
        gate, up = self.gate_up(x).chunk(2, dim=-1)  # each [T, intermediate_size]
        if self.limit is not None:
            return self.gather_output(self.down(self.gather_inner(clamped_swiglu(gate, up, self.limit, self.alpha))))
        activated = self.activation(gate.float()).to(x.dtype)
        inner = self.gather_inner(activated * up)  # each output of `down` is a sum over all inner numbers
        return self.gather_output(self.down(inner))


def silu(x: Tensor) -> Tensor:
    """Return x / (1 + exp(-x)) for x of any shape in float32.

    It is written out: torch's fused silu rounds the last few elements of a tensor differently from the rest, so a row's
    bits would depend on its place in the batch.
    """
    return x / (1 + torch.exp(-x))


def gelu(x: Tensor) -> Tensor:
    """Return x (1 + tanh u) / 2 = x / (1 + exp(-2 u)) with u = sqrt(2 / pi) (x + 0.044715 x^3), for x in float32.

    Source: Gaussian Error Linear Units (arXiv:1606.08415), section 2, the approximation with tanh.
    """
    return x / (1 + torch.exp(-2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))
