"""CpuLlama: the model of model/llama.py with all layers in one call of model/cpu/layers.cpp."""

import time

import torch
from torch import Tensor, nn

from caravan.model.attention.cpu import NO_WINDOW, CpuAttention
from caravan.model.blocks import NotFinite, StoredRows
from caravan.model.checkpoint.checkpoint import Weight
from caravan.model.config import ModelConfig
from caravan.model.cpu.arena import Arena
from caravan.model.cpu.kernels import Kernels, Layers
from caravan.model.cpu.linear import PackedLinear, Quantization
from caravan.model.forward_batch import ForwardBatch
from caravan.model.kv_cache import KVCache
from caravan.model.linear import Linear
from caravan.model.llama import Block, Llama, RMSNorm
from caravan.model.quantization import GroupedWeight, dequantize


class BlockEmbedding(nn.Module):
    """An embedding table that stays in the mapped file, in blocks; the rows of a batch are widened on demand."""

    def __init__(self, rows: StoredRows, kernels: Kernels) -> None:
        """Keep the rows in their file. Raises NotFinite."""
        super().__init__()
        if not kernels.are_finite(rows.stored, rows.kind):
            raise NotFinite
        self.rows = rows
        self._widen_rows = kernels.widen_rows

    def forward(self, token_ids: Tensor) -> Tensor:
        """Return the rows of token_ids [T], [T, hidden_size] in bfloat16."""
        return self._widen_rows(self.rows.stored, token_ids, self.rows.kind).to(torch.bfloat16)


class CpuBlock(Block):
    """A layer with packed weights. layers.cpp computes what model.llama.Block does."""

    def __init__(
        self, config: ModelConfig, layer: int, kernels: Kernels, arena: Arena, quantization: Quantization
    ) -> None:
        super().__init__(config, layer)
        attention, feed_forward = self.attention, self.feed_forward

        def packed(linear: Linear, norm: RMSNorm | None = None) -> PackedLinear:
            return PackedLinear(linear, kernels, arena, quantization, norm)

        attention.qkv = packed(attention.qkv, self.attention_norm)
        attention.output = packed(attention.output)
        feed_forward.gate_up = packed(feed_forward.gate_up, self.feed_forward_norm)
        feed_forward.down = packed(feed_forward.down)

    def add_to(self, layers: Layers) -> None:
        """Append this layer to the kernels' layers."""
        attention, feed_forward = self.attention, self.feed_forward
        linears = (attention.qkv, attention.output, feed_forward.gate_up, feed_forward.down)
        qkv, output, gate_up, down = (linear for linear in linears if isinstance(linear, PackedLinear))
        query_norm, key_norm = attention.query_norm, attention.key_norm
        layers.add(
            attention.window or NO_WINDOW,
            attention.num_heads,
            self.attention_norm.eps,
            self.attention_norm.weight,
            qkv.passed(),
            qkv.bias,
            query_norm.weight if isinstance(query_norm, RMSNorm) else None,
            key_norm.weight if isinstance(key_norm, RMSNorm) else None,
            output.passed(),
            output.bias,
            self.feed_forward_norm.weight,
            gate_up.passed(),
            down.passed(),
        )


class CpuLlama(Llama):
    """bfloat16 between the layers, float32 in the sums, weights in 16, 8 or 4 bits."""

    output: PackedLinear

    def __init__(self, config: ModelConfig, kernels: Kernels, quantization: Quantization) -> None:
        super().__init__(config, CpuAttention(kernels))
        self.quantization = quantization
        arena = Arena()
        self.layers = nn.ModuleList(
            CpuBlock(config, layer, kernels, arena, quantization) for layer in range(config.num_layers)
        )
        head = Linear(config.hidden_size, config.vocab_size)
        self._kernels = kernels
        self._layers: Layers | None = None  # made when the weights are in their places
        self._seconds: Tensor | None = None
        self.output = PackedLinear(head, kernels, arena, quantization, self.norm)

    @property
    def has_byte_products(self) -> bool:
        """Whether the kernels use the processor's products of bytes, which decides on the format of some weights."""
        return self._kernels.has_byte_products()

    def grouped_weights(self) -> set[str]:
        """Return the names of the weights to read on their grids, which are those to quantize."""
        return self._matrices() if self.quantization in ("int8", "int4") else set()

    def weights_in_blocks(self) -> set[str]:
        """Return the names of the weights to keep in the blocks of the file."""
        return self._matrices() | {"embedding.weight"} if self.quantization == "native" else set()

    def _matrices(self) -> set[str]:
        names = {f"{name}.weight" for name, module in self.named_modules() if isinstance(module, PackedLinear)}
        return (names - {"output.weight"}) | {"embedding.weight"} if self.config.tie_embeddings else names

    def place_weight(self, name: str, weight: Weight) -> None:
        """Set a weight, packed if it belongs to a linear layer. A tied embedding is also set as the output head.

        Raises NotFinite.
        """
        owner, _, leaf = name.rpartition(".")
        module = self.get_submodule(owner)
        if isinstance(module, PackedLinear) and leaf == "weight":
            module.place(weight)
            return
        if name == "embedding.weight" and self.config.tie_embeddings and not self.output.parts:
            self.output.place(weight)
        if isinstance(weight, list):
            (part,) = weight  # an embedding is one tensor
            if isinstance(part, StoredRows):
                self.embedding = BlockEmbedding(part, self._kernels)  # type: ignore[assignment]  # it has rows, too
                return
            weight = part
        table = dequantize(weight) if isinstance(weight, GroupedWeight) else weight
        super().place_weight(name, table.to(torch.bfloat16))

    def run_layers(self, x: Tensor, cos: Tensor, sin: Tensor, batch: ForwardBatch, kv_cache: KVCache) -> Tensor:
        """Return the batch's wanted_rows [S, hidden_size] of x [T, hidden_size] after all layers.

        Writes the keys and values of all T tokens into the cache; the rest of the last layer computes only S rows.
        """
        if self._layers is None:
            self._layers = self._kernels.make_layers()
            for layer in self.layers:
                assert isinstance(layer, CpuBlock)
                layer.add_to(self._layers)
        return self._layers.run(
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

    @torch.inference_mode()
    def logits(self, x: Tensor) -> Tensor:
        """Return the logits [S, vocab_size] of the last layer's output x [S, hidden_size], float32."""
        started = time.perf_counter()
        product: Tensor = self.output(x)
        if self._seconds is not None:
            self._seconds[0] += time.perf_counter() - started
        return product

    def start_profile(self) -> Tensor:
        """Return the buffer [2] to which the seconds in linear layers and in attention are added from now on."""
        self._seconds = torch.zeros(2, dtype=torch.float64)
        return self._seconds
