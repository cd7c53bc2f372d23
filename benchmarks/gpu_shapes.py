"""Shapes of the model that figures of the GPU path are for, and published figures of GPUs."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """Sizes of a Llama model."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int


LLAMA_8B = Shapes(  # Llama 3.1 8B
    vocab_size=128_256,
    hidden_size=4096,
    intermediate_size=14_336,
    num_layers=32,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
)
