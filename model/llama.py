"""Llama: the transformer, from token ids to logits.

Llama 2 (arXiv:2307.09288), section 2.2: the pre-norm decoder of LLaMA (arXiv:2302.13971) with RMSNorm, rotary
embeddings, SwiGLU and, for the larger models, grouped-query attention.

Shapes: T tokens in the step (of all sequences, end to end), S of them whose logits are computed.

Several processes, ranks, can compute one model together (model/split.py). Then a linear layer has some of its outputs
here, and they are gathered from all ranks before the next product, which needs all of its inputs.
"""

import itertools
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from caravan.model.attention import PagedAttention
from caravan.model.blocks import WeightPart
from caravan.model.config import ModelConfig
from caravan.model.experts import Experts
from caravan.model.feed_forward import FeedForward
from caravan.model.forward_batch import ForwardBatch
from caravan.model.gather import Gather, not_split
from caravan.model.kv_cache import KVCache, check_block_size
from caravan.model.linear import Linear, row_invariant_linear
from caravan.model.lora import LINEARS, AdaptedLinear, AdapterSlots, PlainAdapters
from caravan.model.position_tables import position_tables
from caravan.model.quantization import GroupedWeight
from caravan.model.rms_norm import RMSNorm
from caravan.model.rope import apply_rope
from caravan.model.soft_cap import soft_cap

if TYPE_CHECKING:
    from caravan.model.split import Split


class Attention(nn.Module):
    """Self-attention over keys and values in the paged KV cache.

    num_kv_heads decides the kind: equal to num_heads is multi-head (arXiv:1706.03762), 1 is multi-query
    (arXiv:1911.02150), anything between is grouped-query attention (arXiv:2305.13245). Some relatives of Llama add a
    bias to the projections (Qwen2), normalise each query and key (Qwen3), attend to a sliding window (Mistral), to
    a sink (gpt-oss), or give some layers no positions (SmolLM3).
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
            together = config.query_key_norm_spans_heads
            self.query_norm = RMSNorm(self.head_dim * (self.num_heads if together else 1), config.rms_norm_eps)
            self.key_norm = RMSNorm(self.head_dim * (self.num_kv_heads if together else 1), config.rms_norm_eps)
        self.norm_spans_heads = config.query_key_norm_spans_heads
        self.window = config.window(layer)
        self.soft_cap = config.attention_soft_cap
        sinks = nn.Parameter(torch.empty(self.num_heads), requires_grad=False)  # StreamingLLM (arXiv:2309.17453)
        self.sinks = sinks if config.has_attention_sinks else None
        self.has_rope = layer not in config.layers_without_rope
        self.gather_heads: Gather = not_split
        self.gather_output: Gather = not_split

    def forward(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        batch: ForwardBatch,
        kv_cache: KVCache,
        paged_attention: PagedAttention,
        query_scale: Tensor | None = None,
    ) -> Tensor:
        """Return [T, hidden_size] for x [T, hidden_size]; writes this step's keys and values into the cache."""
        qkv = self.qkv(x).view(-1, self.num_heads + 2 * self.num_kv_heads, self.head_dim)
        queries, keys, values = qkv.split((self.num_heads, self.num_kv_heads, self.num_kv_heads), dim=1)
        if self.norm_spans_heads:  # OLMo 2
            queries = self.query_norm(queries.flatten(1)).view_as(queries)
            keys = self.key_norm(keys.flatten(1)).view_as(keys)
        else:
            queries, keys = self.query_norm(queries), self.key_norm(keys)  # [T, num_heads or num_kv_heads, head_dim]
        if self.has_rope:  # values carry no position
            queries, keys = apply_rope(queries, cos, sin), apply_rope(keys, cos, sin)
        if query_scale is not None:  # Ministral 3
            queries = (queries * query_scale.view(-1, 1, 1)).to(queries.dtype)
        key_cache, value_cache = kv_cache.keys[self.layer], kv_cache.values[self.layer]
        paged_attention.write(keys, values, key_cache, value_cache, batch.slot_mapping)
        kind = (self.window, self.soft_cap, self.sinks)
        mixed = paged_attention(queries.contiguous(), key_cache, value_cache, batch, *kind)
        heads = self.gather_heads(mixed.flatten(1))  # each output of `output` is a sum over all heads
        return self.gather_output(self.output(heads))  # [T, num_heads * head_dim] -> [T, hidden_size]


class Block(nn.Module):
    """One layer: attention, then feed-forward, each after a norm and added to the residual stream.

    OLMo 2 has the norm after each part, Gemma 2 one before and one after it.
    """

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.attention = Attention(config, layer)
        self.feed_forward_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.feed_forward: FeedForward | Experts = Experts(config) if config.num_experts else FeedForward(config)
        self.has_reordered_norm = config.has_reordered_norm
        self.attention_post_norm: nn.Module = nn.Identity()
        self.feed_forward_post_norm: nn.Module = nn.Identity()
        if config.has_post_norm:
            self.attention_post_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
            self.feed_forward_post_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        batch: ForwardBatch,
        kv_cache: KVCache,
        paged_attention: PagedAttention,
        query_scale: Tensor | None = None,
    ) -> Tensor:
        """Return x [T, hidden_size] after this layer. query_scale [T], if any, multiplies the rotated queries."""
        inputs = (cos, sin, batch, kv_cache, paged_attention, query_scale)
        if self.has_reordered_norm:  # OLMo 2
            x = x + self.attention_norm(self.attention(x, *inputs))
            hidden: Tensor = x + self.feed_forward_norm(self.feed_forward(x))
        else:
            x = x + self.attention_post_norm(self.attention(self.attention_norm(x), *inputs))
            hidden = x + self.feed_forward_post_norm(self.feed_forward(self.feed_forward_norm(x)))
        return hidden


class Llama(nn.Module):
    """The whole model, from tokens, positions and cache slots to logits. It knows nothing of requests and text."""

    takes_rows = False  # whether place_weight takes the grouped weights as UnreadRows
    can_be_graph = False  # attention reads lengths on the host, so a step cannot be recorded as a CUDA graph
    rope_cos: Tensor  # [max_position, head_dim / 2]
    rope_sin: Tensor
    window_rope_cos: Tensor | None  # of layers with a window, if they have their own
    window_rope_sin: Tensor | None
    query_scales: Tensor | None  # [max_position]

    def __init__(self, config: ModelConfig, paged_attention: PagedAttention) -> None:
        super().__init__()
        self.config = config
        self.paged_attention = paged_attention
        # Without a weight, nn.Embedding draws random numbers, which on the meta device imports torch's compiler.
        nothing = torch.empty(config.vocab_size, config.hidden_size)
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size, _weight=nothing)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        # Tied: the embedding matrix is the output head too.
        self.output = None if config.tie_embeddings else Linear(config.hidden_size, config.vocab_size)
        self.split: Split | None = None  # which of the outputs are computed here; None: all
        self.head_rows = slice(None)  # of the embedding matrix, as the output head
        self.gather_logits: Gather = not_split
        self._plain_adapters: PlainAdapters | None = None  # None: no row can have one

    def check_block_size(self, block_size: int) -> None:
        """Raise ValueError unless a KV cache of this model can have blocks of that many tokens."""
        check_block_size(block_size, self.paged_attention.block_multiple)

    def blocks(self) -> list[Block]:
        """Return the layers."""
        return [layer for layer in self.layers if isinstance(layer, Block)]

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

    def make_adapters(self) -> AdapterSlots:
        """Return the table of adapters that rows can have; it is empty. Called once, with all weights in place."""
        self._plain_adapters = adapters = PlainAdapters()
        for layer, block in enumerate(self.blocks()):
            for owner, name in itertools.product((block.attention, block.feed_forward), LINEARS):
                if isinstance(linear := getattr(owner, name, None), Linear):  # no adapter is for experts
                    setattr(owner, name, AdaptedLinear(linear, adapters, layer, name))
        return adapters

    def start_profile(self) -> Tensor | None:
        """Return the buffer [2] of seconds in linear layers and in attention, or None if they are not measured."""
        return None

    def set_max_position(self, max_position: int, device: torch.device) -> None:
        """Compute the tables of each position below max_position (model/position_tables.py)."""
        for name, table in position_tables(self.config, max_position).items():
            self.register_buffer(name, None if table is None else table.to(device), persistent=False)

    @torch.inference_mode()
    def forward(self, batch: ForwardBatch, kv_cache: KVCache) -> Tensor:
        """Return the logits of the batch's wanted_rows, shape [S, vocab_size], float32."""
        return self.logits(self.hidden_states(batch, kv_cache))  # the output head computes S rows only

    @torch.inference_mode()
    def hidden_states(self, batch: ForwardBatch, kv_cache: KVCache) -> Tensor:
        """Return the last layer's output at the batch's wanted_rows, shape [S, hidden_size], before the last norm."""
        if self._plain_adapters is not None:
            self._plain_adapters.begin(batch.row_slots)
        cos, sin = self.rope_cos[batch.positions], self.rope_sin[batch.positions]  # [T, head_dim / 2]
        return self.run_layers(self.embed(batch.token_ids), cos, sin, batch, kv_cache)

    def embed(self, token_ids: Tensor) -> Tensor:
        """Return what the first layer gets, x [T, hidden_size], for token_ids [T]."""
        x: Tensor = self.embedding(token_ids)
        multiplier = self.config.embedding_multiplier  # Granite, Gemma
        return x if multiplier == 1 else x * multiplier

    def run_layers(self, x: Tensor, cos: Tensor, sin: Tensor, batch: ForwardBatch, kv_cache: KVCache) -> Tensor:
        """Return the batch's wanted_rows [S, hidden_size] of x [T, hidden_size] after all layers."""
        window_rope, query_scale = self.window_rope(cos, sin, batch), self.query_scale(batch)
        for layer in self.blocks():
            rope = (cos, sin) if layer.attention.window is None else window_rope
            x = layer(x, *rope, batch, kv_cache, self.paged_attention, query_scale)
        return x[batch.wanted_rows]

    def window_rope(self, cos: Tensor, sin: Tensor, batch: ForwardBatch) -> tuple[Tensor, Tensor]:
        """Return the cosines and sines of layers with a window, those given if they have none of their own."""
        if self.window_rope_cos is None or self.window_rope_sin is None:
            return cos, sin
        return self.window_rope_cos[batch.positions], self.window_rope_sin[batch.positions]

    def query_scale(self, batch: ForwardBatch) -> Tensor | None:
        """Return what the rotated queries are multiplied by, [T], or None."""
        return None if self.query_scales is None else self.query_scales[batch.positions]

    @torch.inference_mode()
    def logits(self, x: Tensor) -> Tensor:
        """Return the logits [S, vocab_size] of the last layer's output x [S, hidden_size], float32."""
        return self.whole_logits(row_invariant_linear(self.norm(x), self.head()).float())

    def whole_logits(self, logits: Tensor) -> Tensor:
        """Return the logits of all ranks, [S, vocab_size] for [S, this rank's part], scaled and capped."""
        logits, scaling, cap = self.gather_logits(logits), self.config.logits_scaling, self.config.logit_soft_cap
        logits = logits if scaling == 1 else logits / scaling  # Granite
        return logits if cap is None else soft_cap(logits, cap)  # Gemma 2

    def head(self) -> Tensor:
        """Return the weight of the output head, [vocab_size, hidden_size]."""
        return self.embedding.weight[self.head_rows] if self.output is None else self.output.weight
