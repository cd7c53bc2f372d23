"""CpuLlama: the model of model/llama.py with all layers in one call of model/cpu/layers.cpp."""

import itertools
import time
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from caravan.model.attention.cpu import NO_CAP, NO_WINDOW, CpuAttention
from caravan.model.blocks import NotFinite, StoredRows, WeightPart
from caravan.model.checkpoint.checkpoint import Weight
from caravan.model.checkpoint.unread_rows import UnreadRows
from caravan.model.config import ModelConfig
from caravan.model.cpu.adapters import CpuAdapters
from caravan.model.cpu.arena import Arena
from caravan.model.cpu.kernels import Kernels, Layers, NativeExchange, PassedWeight
from caravan.model.cpu.linear import PackedLinear, Quantization, rows_at_once
from caravan.model.exchange import KernelExchange, exchange_error
from caravan.model.experts import Experts
from caravan.model.feed_forward import FeedForward
from caravan.model.forward_batch import ForwardBatch
from caravan.model.kv_cache import KVCache
from caravan.model.linear import Linear
from caravan.model.llama import Block, Llama
from caravan.model.quantization import GroupedWeight, dequantize
from caravan.model.rms_norm import RMSNorm

ROUTER_WEIGHT = ".router.weight"  # how the names of routers' weights end; they stay in bfloat16


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
        attention = self.attention

        def packed(linear: Linear) -> PackedLinear:
            return PackedLinear(linear, kernels, arena, quantization)

        attention.qkv = packed(attention.qkv)
        attention.output = packed(attention.output)
        self.activation = "geglu" if config.has_geglu else "swiglu"
        if isinstance(self.feed_forward, Experts):  # the choice of experts is not rounded further
            self.feed_forward.router = PackedLinear(self.feed_forward.router, kernels, arena, "none")
        for network in self._networks():
            network.gate_up = packed(network.gate_up)
            network.down = packed(network.down)

    def _networks(self) -> list[FeedForward]:
        """Return the feed-forward networks: one, or the experts."""
        networks = self.feed_forward.experts if isinstance(self.feed_forward, Experts) else [self.feed_forward]
        return [network for network in networks if isinstance(network, FeedForward)]

    def add_to(self, layers: Layers) -> None:
        """Append this layer to the kernels' layers."""
        attention, feed_forward = self.attention, self.feed_forward
        qkv, output = _passed(attention.qkv, attention.output)
        before: tuple[nn.Module, nn.Module] = self.attention_norm, self.feed_forward_norm
        after = self.attention_post_norm, self.feed_forward_post_norm
        if self.has_reordered_norm:
            before, after = after, before
        layers.add(
            attention.window or NO_WINDOW,
            attention.num_heads,
            attention.soft_cap or NO_CAP,
            self.attention_norm.eps,
            _weight(before[0]),
            qkv,
            attention.qkv.bias,
            _weight(attention.query_norm),
            _weight(attention.key_norm),
            output,
            attention.output.bias,
            _weight(after[0]),
            _weight(before[1]),
            self.activation,
            _weight(after[1]),
        )
        if isinstance(feed_forward, Experts):
            (router,) = _passed(feed_forward.router)
            layers.add_router(router, feed_forward.num_chosen, feed_forward.normalizes_weights)
        for network in self._networks():
            gate_up, down = _passed(network.gate_up, network.down)
            layers.add_network(gate_up, down)


def _passed(*linears: Linear) -> Iterator[PassedWeight]:
    """Yield the weights of packed layers as the kernels take them."""
    return (linear.passed() for linear in linears if isinstance(linear, PackedLinear))


class CpuLlama(Llama):
    """bfloat16 between the layers, float32 in the sums, weights in 16, 8 or 4 bits."""

    takes_rows = True
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
        self._runs: list[tuple[slice, Layers]] = []  # made when the weights are in their places
        self._exchange: NativeExchange | None = None
        self._seconds: Tensor | None = None
        self._adapters: CpuAdapters | None = None
        self.output = PackedLinear(head, kernels, arena, quantization, self.norm)

    @property
    def has_byte_products(self) -> bool:
        """Whether the kernels use the processor's products of bytes, which decides on the format of some weights."""
        return self._kernels.has_byte_products()

    def make_adapters(self) -> CpuAdapters:
        """Return the table of adapters that rows can have; it is empty."""
        self._adapters = CpuAdapters(self._kernels)
        return self._adapters

    def grouped_weights(self) -> set[str]:
        """Return the names of the weights to read on their grids, which are those to quantize."""
        return self._matrices() if self.quantization in ("int8", "int4") else set()

    def weights_in_blocks(self) -> set[str]:
        """Return the names of the weights to keep in the blocks of the file."""
        return self._matrices() | {"embedding.weight"} if self.quantization == "native" else set()

    def _matrices(self) -> set[str]:
        linears = {name: module for name, module in self.named_modules() if isinstance(module, PackedLinear)}
        names = {f"{name}.weight" for name, linear in linears.items() if linear.quantization == self.quantization}
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
        if isinstance(weight, UnreadRows):
            super().place_weight(name, self._table_and_head(weight))
            return
        if name == "embedding.weight" and self.config.tie_embeddings and not self.output.parts:
            self.output.place(_outputs(weight, self.head_rows))
        if isinstance(weight, list):
            (part,) = weight  # an embedding is one tensor
            if isinstance(part, StoredRows):
                self.embedding = BlockEmbedding(part, self._kernels)  # type: ignore[assignment]  # it has rows, too
                return
            weight = part
        dtype = torch.float32 if self.config.is_wide(name) else torch.bfloat16
        super().place_weight(name, _table(weight) if isinstance(weight, GroupedWeight) else weight.to(dtype))

    def _table_and_head(self, weight: UnreadRows) -> Tensor:
        """Pack this rank's outputs of the head from the rows of a tied embedding; return the table in bfloat16."""
        num_rows, width = weight.shape
        table = torch.empty(weight.shape, dtype=torch.bfloat16)
        first, end, _ = self.head_rows.indices(num_rows)
        bounds = ((0, first), (first, end), (end, num_rows))
        ranges = itertools.chain.from_iterable(rows_at_once(stop, width, start) for start, stop in bounds)

        def outputs() -> Iterator[Tensor | GroupedWeight]:
            for rows, piece in weight.pieces(ranges):
                table[rows] = dequantize(piece) if isinstance(piece, GroupedWeight) else piece
                if first <= rows.start < end:
                    yield piece

        self.output.place_pieces(outputs())
        return table

    def run_layers(self, x: Tensor, cos: Tensor, sin: Tensor, batch: ForwardBatch, kv_cache: KVCache) -> Tensor:
        """Return the batch's wanted_rows [S, hidden_size] of x [T, hidden_size] after all layers.

        Writes the keys and values of all T tokens into the cache; the rest of the last layer computes only S rows.
        """
        if not self._runs:
            self._runs = self._passed_layers()
        query_scale = self.query_scale(batch)
        try:
            for run, layers in self._runs:
                is_last, first = run.stop == len(self.layers), self.blocks()[run.start].attention
                run_cos, run_sin = cos, sin
                if not first.has_rope:
                    run_cos, run_sin = torch.ones_like(cos), torch.zeros_like(sin)  # no angle: it changes no bit
                elif first.window is not None:
                    run_cos, run_sin = self.window_rope(cos, sin, batch)
                arguments = (
                    x,
                    run_cos,
                    run_sin,
                    batch.slot_mapping,
                    batch.query_start_loc,
                    batch.seq_lens,
                    batch.block_tables,
                    kv_cache.keys[run],
                    kv_cache.values[run],
                    batch.wanted_rows if is_last else torch.arange(len(x)),
                    query_scale,
                    self._seconds,
                )
                if batch.row_slots is None:
                    x = layers.run(*arguments)
                else:
                    assert self._adapters is not None, "rows have adapters"
                    x = layers.run_adapted(*arguments, self._adapters.native, run.start, batch.row_slots)
        except RuntimeError as error:
            if self._exchange is None:
                raise
            raise exchange_error(self._exchange, error) from None
        return x

    def _passed_layers(self) -> list[tuple[slice, Layers]]:
        """Return the layers as the kernels get them: those of one call follow each other and rotate alike."""
        if self.split is not None:
            assert isinstance(self.split.exchange, KernelExchange), "the kernels gather between two products"
            self._exchange = self.split.exchange.native(self._kernels)
        runs = []
        has_window_rope = self.config.window_rope_theta is not None

        def rotation(block: Block) -> tuple[bool, bool]:
            return block.attention.has_rope, has_window_rope and block.attention.window is not None

        for _, group in itertools.groupby(self.blocks(), rotation):
            run = [*group]
            layers = self._kernels.make_layers()
            for block in run:
                assert isinstance(block, CpuBlock)
                block.add_to(layers)
            if self.split is not None and self._exchange is not None:
                layers.split_up(self._exchange, self.split.heads, self.split.hidden, self.split.inner)
            runs.append((slice(run[0].attention.layer, run[-1].attention.layer + 1), layers))
        return runs

    @torch.inference_mode()
    def logits(self, x: Tensor) -> Tensor:
        """Return the logits [S, vocab_size] of the last layer's output x [S, hidden_size], float32."""
        started = time.perf_counter()
        product: Tensor = self.output(x)
        if self._seconds is not None:
            self._seconds[0] += time.perf_counter() - started
        return self.whole_logits(product)

    def start_profile(self) -> Tensor:
        """Return the buffer [2] to which the seconds in linear layers and in attention are added from now on."""
        self._seconds = torch.zeros(2, dtype=torch.float64)
        return self._seconds


def _weight(norm: nn.Module) -> Tensor | None:
    return norm.weight if isinstance(norm, RMSNorm) else None


def _table(weight: GroupedWeight) -> Tensor:
    """Return the matrix [out, in] in bfloat16, without all of it in float32."""
    table = torch.empty(weight.shape, dtype=torch.bfloat16)
    for rows in rows_at_once(*weight.shape):
        table[rows] = dequantize(weight.outputs(rows))
    return table


def _outputs(weight: Tensor | GroupedWeight | list[WeightPart], rows: slice) -> Weight:
    """Return some outputs of a weight of one part."""
    if isinstance(weight, list):
        return [part[rows] if isinstance(part, Tensor) else part.outputs(rows) for part in weight]
    return weight[rows] if isinstance(weight, Tensor) else weight.outputs(rows)
