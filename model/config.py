"""ModelConfig: the architecture of a model."""

from dataclasses import dataclass

from caravan.model.rope_scaling import DivisorScaling, LongRopeScaling, RopeScaling

_NORMS_OVER_HEADS = "query and key norms over all heads"
_SINKS = "attention sinks"


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
    num_experts: int = 0  # feed-forward networks of a layer that a router chooses from; 0: one network, no router
    num_chosen_experts: int = 0  # for each token
    normalizes_expert_weights: bool = True  # those of the chosen ones add up to 1; Mixtral (arXiv:2401.04088)
    has_qkv_bias: bool = False
    has_output_bias: bool = False  # of attention
    has_query_key_norm: bool = False
    sliding_window: int | None = None  # positions a query attends to, its own included; None: all
    full_layers: tuple[int, ...] = ()  # layers that attend to all positions despite sliding_window
    window_rope_theta: float | None = None  # of layers with a window, not scaled; None: as others; arXiv:2503.19786
    layers_without_rope: tuple[int, ...] = ()  # NoPE, arXiv:2305.19466; some layers, arXiv:2501.18795
    # Factors of Granite 3.0 (IBM, 2024), after µP (arXiv:2203.03466). Its residual_multiplier is in the first of them
    # and in rms_norm_eps: see docs/decisions/0084-relatives-by-flags.md.
    embedding_multiplier: float = 1.0
    attention_multiplier: float | None = None  # of q k; None: 1 / sqrt(head_dim)
    logits_scaling: float = 1.0  # logits are divided by it
    # Queries grow with their position: Llama 4 (Meta, 2025), after Scalable-Softmax (arXiv:2501.19399).
    attention_temperature_scale: float = 0.0  # 0: they do not
    attention_temperature_length: int = 1  # in tokens; up to it they do not, either
    has_reordered_norm: bool = False  # of what a part returns, not of its inputs; OLMo 2 (arXiv:2501.00656)
    query_key_norm_spans_heads: bool = False  # one norm for all heads, not one for each; OLMo 2, too
    has_post_norm: bool = False  # of what a part returns, too; Gemma 2 (arXiv:2408.00118)
    has_wide_norms: bool = False  # the weights of norms are in float32; Gemma 2
    has_geglu: bool = False  # GELU in the place of SiLU; GEGLU (arXiv:2002.05202)
    attention_soft_cap: float | None = None  # of q k, once scaled; Gemma 2, too
    logit_soft_cap: float | None = None
    has_attention_sinks: bool = False  # logits of heads that join the softmax; StreamingLLM (arXiv:2309.17453)
    # Of experts, and the biases are those of the router, too; gpt-oss (arXiv:2508.10925).
    has_expert_bias: bool = False
    swiglu_limit: float | None = None  # the gate and the other factor of SwiGLU are clamped to it, the latter plus 1
    swiglu_alpha: float = 1.0  # of the sigmoid; for a SwiGLU with a limit
    rotary_dim: int | None = None  # leading dimensions of a head that rotate; None: all; GPT-NeoX (arXiv:2204.06745)

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
        if self.rotary_dim is not None and (self.rotary_dim % 2 or not 2 <= self.rotary_dim < self.head_dim):
            raise UnsupportedModel(
                f"{self.rotary_dim} of the {self.head_dim} dimensions of a head rotate; the number must be even."
            )
        if isinstance(self.rope_scaling, DivisorScaling | LongRopeScaling):
            num_pairs = (self.rotary_dim or self.head_dim) // 2
            if any(len(divisors) != num_pairs for divisors in self.rope_scaling.lists()):
                raise UnsupportedModel(f"Each list of divisors of RoPE must have {num_pairs} numbers.")
        thetas = (self.rope_theta, 1 if self.window_rope_theta is None else self.window_rope_theta)
        if not self.rms_norm_eps > 0 or not min(thetas) > 0:
            raise UnsupportedModel("rms_norm_eps and rope_theta must be positive.")
        if self.sliding_window is not None and self.sliding_window < 1:
            raise UnsupportedModel(f"sliding_window is {self.sliding_window}; it must be at least 1.")
        if not self.attention_temperature_scale >= 0 or self.attention_temperature_length < 1:
            raise UnsupportedModel("The scale of queries by position must not be negative, and its length be positive.")
        if any(cap is not None and not cap > 0 for cap in (self.attention_soft_cap, self.logit_soft_cap)):
            raise UnsupportedModel("The soft caps of scores and logits must be positive.")
        if not self.swiglu_alpha > 0 or (self.swiglu_limit is not None and not self.swiglu_limit > 0):
            raise UnsupportedModel("The limit of SwiGLU and the factor in its sigmoid must be positive.")
        if self.num_experts and not 1 <= self.num_chosen_experts <= self.num_experts:
            raise UnsupportedModel(
                f"Each token has {self.num_chosen_experts} of {self.num_experts} experts; it must have at least one."
            )
        if self.layers_without_rope and self.attention_multiplier is not None:
            raise UnsupportedModel("An attention multiplier in a model with layers without RoPE is not supported.")

    def window(self, layer: int) -> int | None:
        """Return how many positions a query of this layer attends to, its own included; None: all."""
        return None if layer in self.full_layers else self.sliding_window

    def is_wide(self, weight: str) -> bool:
        """Return whether the weight of this name is in float32, whatever the data type of the others is."""
        return self.has_wide_norms and weight.endswith("norm.weight")

    def parts_without_gpu(self) -> str:
        """Return the parts of the architecture that no kernel for GPUs has, in words; "" if there are none."""
        parts = {
            "queries scaled by position": self.attention_temperature_scale != 0,
            "norms after attention and feed-forward": self.has_reordered_norm or self.has_post_norm,
            "norm weights in float32": self.has_wide_norms,
            "GEGLU": self.has_geglu,
            "another RoPE in layers with a window": self.window_rope_theta is not None,
            "soft caps of scores": self.attention_soft_cap is not None,
            _NORMS_OVER_HEADS: self.query_key_norm_spans_heads,
            "experts": self.num_experts > 0,
            _SINKS: self.has_attention_sinks,
        }
        return _named(parts)

    def parts_without_kernels(self) -> str:
        """Return the parts of the architecture that only plain PyTorch computes, on CPUs, in words; or ""."""
        parts = {
            _SINKS: self.has_attention_sinks,
            "biases of experts": self.has_expert_bias,
            "a clamped SwiGLU": self.swiglu_limit is not None,
        }
        return _named(parts)

    def parts_of_one_rank(self) -> str:
        """Return the parts of the architecture that several ranks cannot compute together, in words; or ""."""
        parts = {
            _NORMS_OVER_HEADS: self.query_key_norm_spans_heads,
            "experts": self.num_experts > 0,
            _SINKS: self.has_attention_sinks,
        }
        return _named(parts)


def _named(parts: dict[str, bool]) -> str:
    """Return the parts that are used, in words."""
    *others, last = [part for part, is_used in parts.items() if is_used] or [""]
    return f"{', '.join(others)} and {last}" if others else last
