"""Llama: the transformer, from token ids to logits.

Llama 2 (arXiv:2307.09288), section 2.2: the pre-norm decoder of LLaMA (arXiv:2302.13971) with RMSNorm, rotary
embeddings, SwiGLU and, for the larger models, grouped-query attention.

Shapes: T tokens in the step (of all sequences, end to end), S of them whose logits are computed.
"""

import torch
from torch import Tensor, nn

from caravan.model.attention import PagedAttention
from caravan.model.blocks import WeightPart
from caravan.model.config import ModelConfig
from caravan.model.forward_batch import ForwardBatch
from caravan.model.kv_cache import KVCache
from caravan.model.linear import Linear, row_invariant_linear
from caravan.model.quantization import GroupedWeight
from caravan.model.rope import apply_rope, rope_table


class RMSNorm(nn.Module):
    """Scale each token's vector to a root mean square of one, then by a learned weight.

    Unlike LayerNorm it subtracts no mean and adds no bias. Source: arXiv:1910.07467, equation 4.
    """

    def __init__(self, hidden_size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(hidden_size), requires_grad=False)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Return x [T, hidden_size] normalised; the statistics are taken in float32."""
        wide = x.float()
        mean_square = wide.pow(2).mean(dim=-1, keepdim=True)  # [T, 1]
        return (wide * torch.rsqrt(mean_square + self.eps)).to(x.dtype) * self.weight


class FeedForward(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x)). Source: GLU Variants Improve Transformer (arXiv:2002.05202), equation 6."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_up = Linear(config.hidden_size, 2 * config.intermediate_size)  # gate rows, then up rows
        self.down = Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """Return [T, hidden_size] for x [T, hidden_size].

        silu(g) = g / (1 + exp(-g)) is written out: torch's fused silu rounds the last few elements of a tensor
        differently from the rest, so a row's bits would depend on its place in the batch.
        """
        gate, up = self.gate_up(x).chunk(2, dim=-1)  # each [T, intermediate_size]
        wide = gate.float()
        silu = (wide / (1 + torch.exp(-wide))).to(x.dtype)
        down: Tensor = self.down(silu * up)
        return down


class Attention(nn.Module):
    """Self-attention over keys and values in the paged KV cache.

    num_kv_heads decides the kind: equal to num_heads is multi-head (arXiv:1706.03762), 1 is multi-query
    (arXiv:1911.02150), anything between is grouped-query attention (arXiv:2305.13245). Some relatives of Llama add a
    bias to the projections (Qwen2), normalise each query and key (Qwen3), or attend to a sliding window (Mistral).
    """

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.num_heads, self.num_kv_heads, self.head_dim = config.num_heads, config.num_kv_heads, config.head_dim
        num_qkv_rows = (self.num_heads + 2 * self.num_kv_heads) * self.head_dim
        self.qkv = Linear(config.hidden_size, num_qkv_rows, has_bias=config.has_qkv_bias)
        self.output = Linear(self.num_heads * self.head_dim, config.hidden_size, has_bias=config.has_output_bias)
        self.query_norm: nn.Module = nn.Identity()
        self.key_norm: nn.Module = nn.Identity()
        if config.has_query_key_norm:
            self.query_norm = RMSNorm(self.head_dim, config.rms_norm_eps)
            self.key_norm = RMSNorm(self.head_dim, config.rms_norm_eps)
        self.window = config.window(layer)

    def forward(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        batch: ForwardBatch,
        kv_cache: KVCache,
        paged_attention: PagedAttention,
    ) -> Tensor:
        """Return [T, hidden_size] for x [T, hidden_size]; writes this step's keys and values into the cache."""
        qkv = self.qkv(x).view(-1, self.num_heads + 2 * self.num_kv_heads, self.head_dim)
        queries, keys, values = qkv.split((self.num_heads, self.num_kv_heads, self.num_kv_heads), dim=1)
        queries = apply_rope(self.query_norm(queries), cos, sin)  # [T, num_heads, head_dim]
        keys = apply_rope(self.key_norm(keys), cos, sin)  # [T, num_kv_heads, head_dim]; values carry no position
        key_cache, value_cache = kv_cache.keys[self.layer], kv_cache.values[self.layer]
        paged_attention.write(keys, values, key_cache, value_cache, batch.slot_mapping)
        mixed = paged_attention(queries, key_cache, value_cache, batch, self.window)
        output: Tensor = self.output(mixed.flatten(1))  # [T, num_heads * head_dim] -> [T, hidden_size]
        return output


class Block(nn.Module):
    """One layer: attention, then feed-forward, each after a norm and added to the residual stream."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.attention = Attention(config, layer)
        self.feed_forward_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.feed_forward = FeedForward(config)

    def forward(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        batch: ForwardBatch,
        kv_cache: KVCache,
        paged_attention: PagedAttention,
    ) -> Tensor:
        """Return x [T, hidden_size] after this layer."""
        x = x + self.attention(self.attention_norm(x), cos, sin, batch, kv_cache, paged_attention)
        hidden: Tensor = x + self.feed_forward(self.feed_forward_norm(x))
        return hidden


class Llama(nn.Module):
    """The whole model, from tokens, positions and cache slots to logits. It knows nothing of requests and text."""

    can_be_graph = False  # attention reads lengths on the host, so a step cannot be recorded as a CUDA graph
    rope_cos: Tensor  # [max_position, head_dim / 2]
    rope_sin: Tensor

    def __init__(self, config: ModelConfig, paged_attention: PagedAttention) -> None:
        super().__init__()
        self.config = config
        self.paged_attention = paged_attention
        # Without a weight, nn.Embedding draws random numbers, which on the meta device imports torch's compiler.
        nothing = torch.empty(config.vocab_size, config.hidden_size)
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size, _weight=nothing)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        if not config.tie_embeddings:  # tied: the embedding matrix is the output head too
            self.output = Linear(config.hidden_size, config.vocab_size)

    def grouped_weights(self) -> set[str]:
        """Return the names of the weights to read as GroupedWeight where the files have them on a grid; here none."""
        return set()

    def weights_in_blocks(self) -> set[str]:
        """Return the names of the weights to keep in the blocks of the file; here none."""
        return set()

    def place_weight(self, name: str, weight: Tensor | GroupedWeight | list[WeightPart]) -> None:
        """Set the parameter with this dotted name."""
        assert isinstance(weight, Tensor), "grouped_weights and weights_in_blocks are empty"
        owner, _, leaf = name.rpartition(".")
        parameter: nn.Parameter = getattr(self.get_submodule(owner), leaf)
        assert parameter.shape == weight.shape
        setattr(self.get_submodule(owner), leaf, nn.Parameter(weight, requires_grad=False))

    def start_profile(self) -> Tensor | None:
        """Return the buffer [2] of seconds in linear layers and in attention, or None if they are not measured."""
        return None

    def set_max_position(self, max_position: int, device: torch.device) -> None:
        """Compute the rotary table for positions below max_position."""
        config = self.config
        cos, sin = rope_table(config.head_dim, max_position, config.rope_theta, config.rope_scaling)
        self.register_buffer("rope_cos", cos.to(device), persistent=False)
        self.register_buffer("rope_sin", sin.to(device), persistent=False)

    @torch.inference_mode()
    def forward(self, batch: ForwardBatch, kv_cache: KVCache) -> Tensor:
        """Return the logits of the batch's wanted_rows, shape [S, vocab_size], float32."""
        return self.logits(self.hidden_states(batch, kv_cache))  # the output head computes S rows only

    @torch.inference_mode()
    def hidden_states(self, batch: ForwardBatch, kv_cache: KVCache) -> Tensor:
        """Return the last layer's output at the batch's wanted_rows, shape [S, hidden_size], before the last norm."""
        x = self.embedding(batch.token_ids)  # [T, hidden_size]
        cos, sin = self.rope_cos[batch.positions], self.rope_sin[batch.positions]  # [T, head_dim / 2]
        return self.run_layers(x, cos, sin, batch, kv_cache)

    def run_layers(self, x: Tensor, cos: Tensor, sin: Tensor, batch: ForwardBatch, kv_cache: KVCache) -> Tensor:
        """Return the batch's wanted_rows [S, hidden_size] of x [T, hidden_size] after all layers."""
        for layer in self.layers:
            x = layer(x, cos, sin, batch, kv_cache, self.paged_attention)
        return x[batch.wanted_rows]

    @torch.inference_mode()
    def logits(self, x: Tensor) -> Tensor:
        """Return the logits [S, vocab_size] of the last layer's output x [S, hidden_size], float32."""
        head = self.embedding.weight if self.config.tie_embeddings else self.output.weight
        return row_invariant_linear(self.norm(x), head).float()
