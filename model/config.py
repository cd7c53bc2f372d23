"""ModelConfig: the architecture of a model."""

from dataclasses import dataclass

from caravan.model.rope_scaling import RopeScaling


class UnsupportedModel(ValueError):
    """The files describe a model that this version cannot run; the message names the part."""


@dataclass(frozen=True)
class ModelConfig:
    """The architecture of a Llama-family model (Llama 2, arXiv:2307.09288, section 2.2).

    num_kv_heads = num_heads is multi-head attention (MHA), 1 is multi-query attention
    (MQA, arXiv:1911.02150), anything between is grouped-query attention (GQA, arXiv:2305.13245).
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int  # width inside the feed-forward network
    num_layers: int
    num_heads: int  # query heads
    num_kv_heads: int  # key and value heads, each shared by num_heads / num_kv_heads query heads
    head_dim: int
    max_position: int  # longest context the model was trained for, in tokens
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    rms_norm_eps: float = 1e-5
    tie_embeddings: bool = False  # the output head is the embedding matrix
    has_qkv_bias: bool = False
    has_output_bias: bool = False  # of attention
    has_query_key_norm: bool = False
    sliding_window: int | None = None  # positions a query attends to, its own included; None: all
    num_full_layers: int = 0  # first layers that attend to all positions despite sliding_window

    def __post_init__(self) -> None:
        for name in ("vocab_size", "hidden_size", "intermediate_size", "num_layers", "num_heads", "num_kv_heads"):
            if getattr(self, name) < 1:
                raise UnsupportedModel(f"{name} is {getattr(self, name)}; it must be at least 1.")
        if self.max_position < 1:
            raise UnsupportedModel(f"max_position is {self.max_position}; it must be at least 1.")
        if self.num_heads % self.num_kv_heads:
            raise UnsupportedModel(
                f"num_heads ({self.num_heads}) must be a multiple of num_kv_heads ({self.num_kv_heads})."
            )
        if self.head_dim < 2 or self.head_dim % 2:
            raise UnsupportedModel(f"head_dim is {self.head_dim}; rotary embeddings rotate pairs, so it must be even.")
        if not self.rms_norm_eps > 0 or not self.rope_theta > 0:
            raise UnsupportedModel("rms_norm_eps and rope_theta must be positive.")
        if self.sliding_window is not None and self.sliding_window < 1:
            raise UnsupportedModel(f"sliding_window is {self.sliding_window}; it must be at least 1.")

    def window(self, layer: int) -> int | None:
        """Return how many positions a query of this layer attends to, its own included; None: all."""
        return None if layer < self.num_full_layers else self.sliding_window
