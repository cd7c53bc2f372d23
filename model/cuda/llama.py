"""CudaLlama: the model of model/llama.py with its layers in Triton kernels."""

from typing import Literal

import torch
from torch import Tensor

from caravan.model.blocks import WeightPart
from caravan.model.config import ModelConfig
from caravan.model.cuda.attention import CudaAttention
from caravan.model.cuda.heads import rotated_queries
from caravan.model.cuda.linear import CudaLinear, product
from caravan.model.cuda.packed_linear import PackedLinear, PackedQuantization
from caravan.model.cuda.rows import normalize_heads_, normalized, swiglu
from caravan.model.feed_forward import FeedForward
from caravan.model.forward_batch import ForwardBatch
from caravan.model.kv_cache import KVCache
from caravan.model.linear import Linear
from caravan.model.llama import Block, Llama
from caravan.model.quantization import GroupedWeight
from caravan.model.rms_norm import RMSNorm

CudaQuantization = Literal["none"] | PackedQuantization


class CudaLlama(Llama):
    """bfloat16 or float32 between the layers, float32 in the sums; weights in that dtype, or packed.

    `int8` and `int4` pack the layers' weights, `native` also an output head of its own; an embedding table is in dtype.

    A step reads nothing back to the host. The bits of a row depend on its own sequence alone, except with
    fast_matmul, where cuBLAS multiplies.
    """

    can_be_graph = True

    def __init__(
        self, config: ModelConfig, device: torch.device, quantization: CudaQuantization, *, fast_matmul: bool
    ) -> None:
        """`device` gets the weights that are packed. fast_matmul needs quantization `none`."""
        super().__init__(config, CudaAttention())
        assert quantization == "none" or not fast_matmul
        self.device = device
        self.fast_matmul = fast_matmul
        self.quantization = quantization

        def linear(plain: Linear) -> Linear:
            return (
                CudaLinear(plain, is_fast=fast_matmul) if quantization == "none" else PackedLinear(plain, quantization)
            )

        for layer in self.blocks():
            attention, feed_forward = layer.attention, layer.feed_forward
            assert isinstance(feed_forward, FeedForward), "choose_backend refuses experts"
            attention.qkv, attention.output = linear(attention.qkv), linear(attention.output)
            feed_forward.gate_up, feed_forward.down = linear(feed_forward.gate_up), linear(feed_forward.down)
        if quantization == "native" and self.output is not None:
            self.output = linear(self.output)

    def grouped_weights(self) -> set[str]:
        """Return the names of the weights to read on their grids, which are those to quantize."""
        return set() if self.quantization == "native" else self._packed_weights()

    def weights_in_blocks(self) -> set[str]:
        """Return the names of the weights to keep in the blocks of the file."""
        return self._packed_weights() if self.quantization == "native" else set()

    def _packed_weights(self) -> set[str]:
        return {f"{name}.weight" for name, module in self.named_modules() if isinstance(module, PackedLinear)}

    def place_weight(self, name: str, weight: Tensor | GroupedWeight | list[WeightPart]) -> None:
        """Set the parameter with this dotted name, packed if its layer is. Raises NotFinite."""
        owner, _, leaf = name.rpartition(".")
        module = self.get_submodule(owner)
        if isinstance(module, PackedLinear) and leaf == "weight":
            module.place(weight, self.device)
        else:
            super().place_weight(name, weight)

    def set_max_position(self, max_position: int, device: torch.device) -> None:
        """Compute the rotary table for positions below max_position, and one that rotates nothing."""
        super().set_max_position(max_position, device)
        if self.config.layers_without_rope:
            self._no_rotation = torch.ones_like(self.rope_cos), torch.zeros_like(self.rope_sin)

    @torch.inference_mode()
    def hidden_states(self, batch: ForwardBatch, kv_cache: KVCache) -> Tensor:
        """Return the last layer's output at the batch's wanted_rows, shape [S, hidden_size], before the last norm."""
        x = self.embed(batch.token_ids)
        return self.run_layers(x, self.rope_cos, self.rope_sin, batch, kv_cache)

    def run_layers(self, x: Tensor, cos: Tensor, sin: Tensor, batch: ForwardBatch, kv_cache: KVCache) -> Tensor:
        """Return the batch's wanted_rows [S, hidden_size] of x [T, hidden_size] after all layers.

        cos and sin are whole tables, [max_position, head_dim / 2]; the kernel takes the rows of the positions.
        """
        added: Tensor | None = None  # what the layer before adds to x
        for layer in self.blocks():
            x, norm = _normalized(x, added, layer.attention_norm)
            rope = (cos, sin) if layer.attention.has_rope else self._no_rotation
            added = self._attend(layer, norm, rope, batch, kv_cache)
            x, norm = _normalized(x, added, layer.feed_forward_norm)
            feed_forward = layer.feed_forward
            assert isinstance(feed_forward, FeedForward)
            inner = feed_forward.gather_inner(swiglu(feed_forward.gate_up(norm)))
            added = feed_forward.gather_output(feed_forward.down(inner))
        wanted = x.index_select(0, batch.wanted_rows)
        return wanted if added is None else wanted + added.index_select(0, batch.wanted_rows)

    def _attend(
        self, layer: Block, x: Tensor, rope: tuple[Tensor, Tensor], batch: ForwardBatch, kv_cache: KVCache
    ) -> Tensor:
        """Return what the attention of a layer adds to the residual stream, for x [T, hidden_size], normalized."""
        attention = layer.attention
        keys, values = kv_cache.keys[attention.layer], kv_cache.values[attention.layer]
        qkv = attention.qkv(x).view(x.shape[0], -1, attention.head_dim)  # [T, num_heads + 2 num_kv_heads, head_dim]
        query_norm, key_norm = attention.query_norm, attention.key_norm
        if isinstance(query_norm, RMSNorm) and isinstance(key_norm, RMSNorm):
            normalize_heads_(qkv, attention.num_kv_heads, query_norm.weight, key_norm.weight, query_norm.eps)
        queries = rotated_queries(qkv, rope, batch.positions, batch.slot_mapping, keys, values)
        mixed = self.paged_attention(queries, keys, values, batch, attention.window)
        heads = attention.gather_heads(mixed.flatten(1))
        return attention.gather_output(attention.output(heads))  # [T, num_heads * head_dim] -> [T, hidden_size]

    @torch.inference_mode()
    def logits(self, x: Tensor) -> Tensor:
        """Return the logits [S, vocab_size] of the last layer's output x [S, hidden_size], float32."""
        _, norm = _normalized(x, None, self.norm)
        if isinstance(self.output, PackedLinear):
            return self.whole_logits(self.output.forward(norm, torch.float32))
        if self.fast_matmul:
            return self.whole_logits(torch.nn.functional.linear(norm, self.head()).float())
        return self.whole_logits(product(norm, self.head(), dtype=torch.float32))


def _normalized(x: Tensor, added: Tensor | None, norm: RMSNorm) -> tuple[Tensor, Tensor]:
    return normalized(x, added, norm.weight, norm.eps)
