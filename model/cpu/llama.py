"""CpuLlama: the model of model/llama.py, all its layers in one call of model/cpu/layers.cpp."""

import time
from typing import Any

import torch
from torch import Tensor, nn

from caravan.model.attention.cpu import NO_WINDOW, CpuAttention
from caravan.model.config import ModelConfig
from caravan.model.cpu.arena import Arena
from caravan.model.cpu.linear import PackedLinear, Quantization
from caravan.model.forward_batch import ForwardBatch
from caravan.model.kv_cache import KVCache
from caravan.model.linear import Linear
from caravan.model.llama import Block, Llama, RMSNorm
from caravan.model.quantization import GroupedWeight, dequantize


class CpuBlock(Block):
    """A layer whose weights are packed; what is done with them is that of model.llama.Block, in layers.cpp."""

    def __init__(self, config: ModelConfig, layer: int, kernels: Any, arena: Arena, quantization: Quantization) -> None:
        super().__init__(config, layer)
        attention, feed_forward = self.attention, self.feed_forward

        def packed(linear: Linear, norm: RMSNorm | None = None) -> PackedLinear:
            return PackedLinear(linear, kernels, arena, quantization, norm)

        attention.qkv = packed(attention.qkv, self.attention_norm)
        attention.output = packed(attention.output)
        feed_forward.gate_up = packed(feed_forward.gate_up, self.feed_forward_norm)
        feed_forward.down = packed(feed_forward.down)

    def parts(self) -> tuple[Any, ...]:
        """Return what `Layers.add` wants to know of this layer, in its order."""
        attention, feed_forward = self.attention, self.feed_forward
        query_norm, key_norm = attention.query_norm, attention.key_norm
        return (
            attention.window or NO_WINDOW,
            attention.num_heads,
            self.attention_norm.eps,
            self.attention_norm.weight,
            *(attention.qkv.packed, attention.qkv.format, attention.qkv.bias),
            query_norm.weight if isinstance(query_norm, RMSNorm) else None,
            key_norm.weight if isinstance(key_norm, RMSNorm) else None,
            *(attention.output.packed, attention.output.format, attention.output.bias),
            self.feed_forward_norm.weight,
            *(feed_forward.gate_up.packed, feed_forward.gate_up.format, feed_forward.gate_up.out_features),
            *(feed_forward.down.packed, feed_forward.down.format),
        )


class CpuLlama(Llama):
    """bfloat16 between the layers, float32 in the sums, weights in 16, 8 or 4 bits."""

    output: PackedLinear

    def __init__(self, config: ModelConfig, kernels: Any, quantization: Quantization) -> None:
        super().__init__(config, CpuAttention(kernels))
        self.quantization = quantization
        arena = Arena()
        self.layers = nn.ModuleList(
            CpuBlock(config, layer, kernels, arena, quantization) for layer in range(config.num_layers)
        )
        head = Linear(config.hidden_size, config.vocab_size)
        self._kernels = kernels
        self._layers: Any = None  # the kernels' own list of layers, once the weights are in their places
        self._seconds: Tensor | None = None
        self.output = PackedLinear(head, kernels, arena, quantization, self.norm)

    def grouped_weights(self) -> set[str]:
        """Return the names of the weights that are quantized."""
        if self.quantization == "none":
            return set()
        names = {f"{name}.weight" for name, module in self.named_modules() if isinstance(module, PackedLinear)}
        return (names - {"output.weight"}) | {"embedding.weight"} if self.config.tie_embeddings else names

    def place_weight(self, name: str, weight: Tensor | GroupedWeight) -> None:
        """Put a weight in its place, packed if it belongs to a linear layer; a tied embedding goes to two places."""
        owner, _, leaf = name.rpartition(".")
        module = self.get_submodule(owner)
        if isinstance(module, PackedLinear) and leaf == "weight":
            module.place(weight)
            return
        if name == "embedding.weight" and self.config.tie_embeddings:
            self.output.place(weight)
        table = dequantize(weight) if isinstance(weight, GroupedWeight) else weight
        super().place_weight(name, table.to(torch.bfloat16))

    def run_layers(self, x: Tensor, cos: Tensor, sin: Tensor, batch: ForwardBatch, kv_cache: KVCache) -> Tensor:
        """Return the batch's wanted_rows [S, hidden_size] of x [T, hidden_size] after all layers.

        This step's keys and values are written into the cache, of all T; the last layer computes no more of the others.
        """
        if self._layers is None:
            self._layers = self._kernels.make_layers()
            for layer in self.layers:
                assert isinstance(layer, CpuBlock)
                self._layers.add(*layer.parts())
        hidden: Tensor = self._layers.run(
            x,
            cos,
            sin,
            batch.slot_mapping,
            batch.query_start_loc,
            batch.seq_lens,
            batch.block_tables,
            kv_cache.keys,
            kv_cache.values,
            batch.wanted_rows,
            self._seconds,
        )
        return hidden

    @torch.inference_mode()
    def logits(self, x: Tensor) -> Tensor:
        """Return the logits [S, vocab_size] of the last layer's output x [S, hidden_size], float32."""
        started = time.perf_counter()
        product: Tensor = self.output(x)
        if self._seconds is not None:
            self._seconds[0] += time.perf_counter() - started
        return product

    def start_profile(self) -> Tensor:
        """Return where from now on the seconds spent in linear layers and in attention are summed up."""
        self._seconds = torch.zeros(2, dtype=torch.float64)
        return self._seconds
