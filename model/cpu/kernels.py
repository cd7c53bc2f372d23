"""Kernels: the C++ operators of the CPU backend, as torch calls them from Python."""

from collections.abc import Sequence
from enum import Enum
from typing import Protocol

from torch import Tensor


class WeightFormat(Enum):
    """The layout of a packed weight; the values are the kernels' own names.

    Sizes and layouts are in model/cpu/packing.py and model/cpu/block_forms.h, products in model/cpu/product.h.
    """

    BFLOAT16 = "bfloat16"
    INT8 = "int8"  # bytes times bytes
    GRID_8 = "grid of 8 bits"  # times bfloat16
    GRID_4 = "grid of 4 bits"  # times bfloat16
    GRID_4_INT8 = "grid of 4 bits times bytes"
    GRID_5_INT8 = "grid of 5 bits times bytes"
    Q4_0 = "Q4_0"
    Q5_0 = "Q5_0"
    Q8_0 = "Q8_0"
    IQ4_NL = "IQ4_NL"  # these and the following times bytes
    IQ4_XS = "IQ4_XS"
    MXFP4 = "MXFP4"
    NVFP4 = "NVFP4"
    Q2_K = "Q2_K"
    Q3_K = "Q3_K"
    Q4_K = "Q4_K"
    Q5_K = "Q5_K"
    Q6_K = "Q6_K"


PassedWeight = tuple[list[Tensor], list[str], list[int]]  # packed, formats and numbers of outputs of its parts


class LinearOverload(Protocol):
    """The only overload of the operator `linear`; calling it directly saves the search for one."""

    def __call__(
        self,
        x: Tensor,
        packed: Sequence[Tensor],
        formats: Sequence[str],
        num_outputs: Sequence[int],
        activation: str,
        norm_weight: Tensor | None,
        eps: float,
        bias: Tensor | None,
        residual: Tensor | None,
        float_out: bool,
        /,
    ) -> Tensor:
        """Return f(x) times the weight, plus bias and residual, [T, sum of num_outputs] in bfloat16 or float32.

        A weight has parts, each with a format, the value of a WeightFormat. `activation` names f: "" for none,
        "rms_norm" with norm_weight, "swiglu" and "geglu" for x [T, 2 in], the gate and up projections.
        """


class LinearOperator(Protocol):
    """The operator `linear`."""

    @property
    def default(self) -> LinearOverload:
        """The overload."""


class NativeExchange(Protocol):
    """An exchange between ranks, in C++: model/cpu/exchange.h."""

    def gather(self, part: Tensor, sizes: Sequence[int], /) -> Tensor:
        """Return the parts [T, sizes[rank]] of all ranks side by side. Raises RuntimeError."""

    def close(self) -> None:
        """Leave the other ranks."""

    def failure(self) -> str:
        """Return why `gather` raises; empty while it does not."""


class NativeAdapters(Protocol):
    """The adapters in memory, in C++: model/cpu/adapters.h."""

    def add(
        self, slot: int, layer: int, linear: int, first: int, num_outputs: int, scale: float, a: Tensor, b: Tensor, /
    ) -> None:
        """Add matrices a [in, rank] and b [rank, out] in bfloat16 to a slot; rank and out are multiples of 16."""

    def remove(self, slot: int, /) -> None:
        """Make a slot empty."""


class Layers(Protocol):
    """All layers of a model, in C++."""

    def add(
        self,
        window: int,
        num_heads: int,
        soft_cap: float,
        eps: float,
        attention_norm: Tensor | None,
        qkv: PassedWeight,
        qkv_bias: Tensor | None,
        query_norm: Tensor | None,
        key_norm: Tensor | None,
        output: PassedWeight,
        output_bias: Tensor | None,
        attention_post_norm: Tensor | None,
        feed_forward_norm: Tensor | None,
        activation: str,
        feed_forward_post_norm: Tensor | None,
        /,
    ) -> None:
        """Append a layer; norms, biases and packed weights are kept, not copied.

        Norms are in bfloat16 or float32. A norm of queries or keys is of one head or of all together. A soft cap of 0
        is none. The activation is "swiglu" or "geglu".
        """

    def add_router(self, router: PassedWeight, num_chosen: int, normalizes_weights: bool, /) -> None:
        """Have the last layer choose num_chosen of its networks for each row, as model.experts does."""

    def add_network(self, gate_up: PassedWeight, down: PassedWeight, /) -> None:
        """Append a feed-forward network to the last layer, which has one, or with a router several."""

    def split_up(
        self,
        exchange: NativeExchange,
        head_sizes: Sequence[int],
        hidden_sizes: Sequence[int],
        inner_sizes: Sequence[int],
        /,
    ) -> None:
        """Split the outputs of all layers between ranks.

        The sizes are numbers of outputs of each rank: of attention, of x, and of the gate and the up projection.
        """

    def run(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        slots: Tensor,
        query_starts: Tensor,
        lengths: Tensor,
        block_tables: Tensor,
        key_pages: Sequence[Tensor],
        value_pages: Sequence[Tensor],
        wanted_rows: Tensor,
        query_scale: Tensor | None,
        seconds: Tensor | None,
        /,
    ) -> Tensor:
        """Return the wanted rows [S, hidden_size] of x [T, hidden_size] after all layers.

        query_scale [T] multiplies the rotated queries. Writes keys and values into the pages, and adds the seconds of
        linear layers and of attention to seconds [2].
        """

    def run_adapted(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        slots: Tensor,
        query_starts: Tensor,
        lengths: Tensor,
        block_tables: Tensor,
        key_pages: Sequence[Tensor],
        value_pages: Sequence[Tensor],
        wanted_rows: Tensor,
        query_scale: Tensor | None,
        seconds: Tensor | None,
        adapters: NativeAdapters,
        first_layer: int,
        row_slots: Tensor,
        /,
    ) -> Tensor:
        """Do what `run` does, with the adapters in the slots row_slots [T] of the rows; -1: the row has none.

        The first layer here is number first_layer of the model.
        """


class Kernels(Protocol):
    """The operators of one build, `torch.ops.<library>`. Shapes are those of ForwardBatch and PagedAttention."""

    @property
    def linear(self) -> LinearOperator:
        """The product of rows with a packed weight."""

    def has_byte_products(self) -> bool:
        """Return whether the processor multiplies bytes, so that 8 bits are faster than a grid of 4."""

    def pack_blocks(self, stored: Sequence[Tensor], orders: Sequence[Tensor], kind: str, packed: Tensor, /) -> bool:
        """Pack rows in blocks of a kind, as StoredRows has them; return whether all scales are finite."""

    def are_finite(self, stored: Tensor, kind: str, /) -> bool:
        """Return whether all scales of a matrix in blocks are finite."""

    def widen_rows(self, stored: Tensor, rows: Tensor, kind: str, /) -> Tensor:
        """Return rows [T] of a matrix in blocks, as StoredRows has it, in float32 [T, in]. Raises IndexError."""

    def write(self, keys: Tensor, values: Tensor, slots: Tensor, key_pages: Tensor, value_pages: Tensor, /) -> None:
        """Store keys and values, each [T, num_kv_heads, head_dim], at the slots [T]."""

    def attend(
        self,
        queries: Tensor,
        key_pages: Tensor,
        value_pages: Tensor,
        query_starts: Tensor,
        lengths: Tensor,
        block_tables: Tensor,
        window: int,
        soft_cap: float,
        /,
    ) -> Tensor:
        """Return the attention of queries [T, num_heads, head_dim] over the pages, of the same shape."""

    def share_memory(self, descriptor: int, rank: int, num_ranks: int, timeout_seconds: float, /) -> NativeExchange:
        """Return the exchange of a rank through a file of shared memory. Raises ValueError."""

    def join_group(self, group_name: str, rank: int, num_ranks: int, /) -> NativeExchange:
        """Return the exchange of a rank through a process group of torch.distributed."""

    def make_adapters(self) -> NativeAdapters:
        """Return an empty table of adapters."""

    def make_layers(self) -> Layers:
        """Return an empty list of layers."""
