"""CudaLlama: the model of model/llama.py with its layers in Triton kernels."""

from typing import Literal

import torch
from torch import Tensor

from caravan.model.blocks import WeightPart
from caravan.model.config import ModelConfig
from caravan.model.cuda.attention import CudaAttention
from caravan.model.cuda.heads import rotated_queries
from caravan.model.cuda.linear import CudaLinear, Int4Linear, product
from caravan.model.cuda.rows import normalize_heads_, normalized, swiglu
from caravan.model.forward_batch import ForwardBatch
from caravan.model.kv_cache import KVCache
from caravan.model.linear import Linear
from caravan.model.llama import Block, Llama, RMSNorm
from caravan.model.quantization import GroupedWeight, dequantize, quantize

CudaQuantization = Literal["none", "int4"]


class CudaLlama(Llama):
    """bfloat16 or float32 between the layers, float32 in the sums; weights in that dtype, or the layers' in 4 bits.

    A step reads nothing back to the host. The bits of a row depend on its own sequence alone, except with
    fast_matmul, where cuBLAS multiplies.
    """

    can_be_graph = True

    def __init__(
        self, config: ModelConfig, device: torch.device, quantization: CudaQuantization, *, fast_matmul: bool
    ) -> None:
        """`device` gets the weights that come on a grid. fast_matmul needs quantization `none`."""
        super().__init__(config, CudaAttention())
        assert quantization == "none" or not fast_matmul
        self.device = device
        self.fast_matmul = fast_matmul

        def linear(plain: Linear) -> Linear:
            return Int4Linear(plain) if quantization == "int4" else CudaLinear(plain, is_fast=fast_matmul)

        for layer in self._blocks():
            attention, feed_forward = layer.attention, layer.feed_forward
            attention.qkv, attention.output = linear(attention.qkv), linear(attention.output)
            feed_forward.gate_up, feed_forward.down = linear(feed_forward.gate_up), linear(feed_forward.down)

    def grouped_weights(self) -> set[str]:
        """Return the names of the weights to read as GroupedWeight where the files have them on a grid."""
        return {f"{name}.weight" for name, module in self.named_modules() if isinstance(module, Int4Linear)}

    def place_weight(self, name: str, weight: Tensor | GroupedWeight | list[WeightPart]) -> None:
        """Set the parameter with this dotted name, packed if it is to have 4 bits.

        A matrix on a grid of 8 bits is kept in bfloat16: 4 would lose what the file has.
        """
        owner, _, leaf = name.rpartition(".")
        module = self.get_submodule(owner)
        if not isinstance(module, Int4Linear) or leaf != "weight":
            super().place_weight(name, weight)
            return
        assert not isinstance(weight, list), "weights_in_blocks is empty"
        if isinstance(weight, GroupedWeight) and weight.bits == 8:
            linear = CudaLinear(module, is_fast=False)
            linear.bias = module.bias
            self.set_submodule(owner, linear)
            super().place_weight(name, dequantize(weight).to(self.device, torch.bfloat16))
            return
        module.place(weight if isinstance(weight, GroupedWeight) else quantize(weight, 4), self.device)

    @torch.inference_mode()
    def hidden_states(self, batch: ForwardBatch, kv_cache: KVCache) -> Tensor:
        """Return the last layer's output at the batch's wanted_rows, shape [S, hidden_size], before the last norm."""
        x = self.embedding(batch.token_ids)  # [T, hidden_size]
        return self.run_layers(x, self.rope_cos, self.rope_sin, batch, kv_cache)

    def run_layers(self, x: Tensor, cos: Tensor, sin: Tensor, batch: ForwardBatch, kv_cache: KVCache) -> Tensor:
        """Return the batch's wanted_rows [S, hidden_size] of x [T, hidden_size] after all layers.

        cos and sin are whole tables, [max_position, head_dim / 2]; the kernel takes the rows of the positions.
        """
        added: Tensor | None = None  # what the layer before adds to x
        for layer in self._blocks():
            x, norm = _normalized(x, added, layer.attention_norm)
            added = self._attend(layer, norm, (cos, sin), batch, kv_cache)
            x, norm = _normalized(x, added, layer.feed_forward_norm)
            added = layer.feed_forward.down(swiglu(layer.feed_forward.gate_up(norm)))
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
        output: Tensor = attention.output(mixed.flatten(1))  # [T, num_heads * head_dim] -> [T, hidden_size]
        return output

    @torch.inference_mode()
    def logits(self, x: Tensor) -> Tensor:
        """Return the logits [S, vocab_size] of the last layer's output x [S, hidden_size], float32."""
        head = self.embedding.weight if self.config.tie_embeddings else self.output.weight
        _, norm = _normalized(x, None, self.norm)
        if self.fast_matmul:
            return torch.nn.functional.linear(norm, head).float()
        return product(norm, head, dtype=torch.float32)

    def _blocks(self) -> list[Block]:
        blocks = list(self.layers)
        assert all(isinstance(block, Block) for block in blocks)
        return blocks  # type: ignore[return-value]  # they are


def _normalized(x: Tensor, added: Tensor | None, norm: RMSNorm) -> tuple[Tensor, Tensor]:
    return normalized(x, added, norm.weight, norm.eps)
