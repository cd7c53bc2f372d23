"""Shapes of the model that figures of the GPU path are for, published figures of GPUs, and formats of weights."""

from dataclasses import dataclass
from math import prod
from typing import NamedTuple

from caravan.model.cuda.packed_layouts import BLOCK_LAYOUTS, GRIDS, SUPERBLOCK, PackedLayout


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """Sizes of a Llama model."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int

    def products(self) -> dict[str, tuple[int, int]]:
        """Return outputs and inputs of a layer's matrix products."""
        width = self.num_heads * self.head_dim
        return {
            "qkv": (width + 2 * self.num_kv_heads * self.head_dim, self.hidden_size),
            "output": (self.hidden_size, width),
            "gate_up": (2 * self.intermediate_size, self.hidden_size),
            "down": (self.hidden_size, self.intermediate_size),
        }

    def num_layer_weights(self) -> int:
        """Return the weights of all layers' matrix products."""
        return self.num_layers * sum(map(prod, self.products().values()))


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """A GPU as its maker describes it: memory, and dense operations a second, a product and a sum being two."""

    name: str
    target: str  # of its machine code
    memory_bytes: float
    bytes_per_second: float
    bfloat16: float  # matrix operations a second
    float8: float  # 0: it has none
    float64: float
    instructions: float  # a second, of all lanes: those of a clock's multiprocessors at the highest clock


# Data sheets: NVIDIA A100 80GB SXM, H100 SXM, H200 SXM, HGX B200 (an eighth of it), AMD Instinct MI300X.
GPUS = (
    Gpu(
        name="A100",
        target="sm_80",
        memory_bytes=80e9,
        bytes_per_second=2.039e12,
        bfloat16=312e12,
        float8=0,
        float64=9.7e12,
        instructions=19.5e12,
    ),
    Gpu(
        name="H100",
        target="sm_90",
        memory_bytes=80e9,
        bytes_per_second=3.35e12,
        bfloat16=989e12,
        float8=1979e12,
        float64=34e12,
        instructions=33.5e12,
    ),
    Gpu(
        name="H200",
        target="sm_90",
        memory_bytes=141e9,
        bytes_per_second=4.8e12,
        bfloat16=989e12,
        float8=1979e12,
        float64=34e12,
        instructions=33.5e12,
    ),
    Gpu(
        name="B200",
        target="sm_100",
        memory_bytes=180e9,
        bytes_per_second=8e12,
        bfloat16=2250e12,
        float8=4500e12,
        float64=37e12,
        instructions=37.5e12,
    ),
    Gpu(
        name="MI300X",
        target="gfx942",
        memory_bytes=192e9,
        bytes_per_second=5.3e12,
        bfloat16=1307e12,
        float8=2615e12,
        float64=81.7e12,
        instructions=40.9e12,
    ),
)


@dataclass(frozen=True, kw_only=True)
class Storage:
    """How weights are stored, and the kernel that multiplies them."""

    kernel: str = "multiply"
    num_bytes: float = 2  # of a weight, with its part of a scale


def packed_storage(name: str, layout: PackedLayout) -> Storage:
    """Return how the kernel multiply_packed has weights."""
    width = 16 * SUPERBLOCK
    return Storage(kernel=f"multiply_packed, {name}", num_bytes=layout.num_bytes(1, width) / width)


@dataclass(frozen=True, kw_only=True)
class Format:
    """How the weights and the KV pool are stored. The embedding table is bfloat16 in each."""

    name: str
    layers: Storage = Storage()
    more: Storage | None = None  # of the values and the down projections of half of the layers
    head: Storage = Storage()
    kv_bytes: int = 2  # of a number in the pool
    is_float8: bool = False  # matrix products in 8 bits, where the GPU has them

    def products(self, shapes: Shapes) -> list["Product"]:
        """Return the products of the layers."""
        found = []
        for name, (outputs, inputs) in shapes.products().items():
            num_more = 0 if self.more is None or name not in ("qkv", "down") else shapes.num_layers // 2
            if self.more is not None and num_more:
                values = shapes.num_kv_heads * shapes.head_dim if name == "qkv" else outputs
                found.append(Product(f"{name}, {self.more.kernel}", num_more, values, inputs, self.more))
                if outputs > values:
                    found.append(Product(f"{name}, the rest", num_more, outputs - values, inputs, self.layers))
            found.append(Product(name, shapes.num_layers - num_more, outputs, inputs, self.layers))
        return found

    def layer_bytes(self, shapes: Shapes) -> float:
        """Return the bytes of all layers' matrices."""
        return sum(one.launches * one.outputs * one.inputs * one.storage.num_bytes for one in self.products(shapes))


class Product(NamedTuple):
    """A product of the layers with weights of one kind."""

    name: str
    launches: int  # in a step
    outputs: int
    inputs: int
    storage: Storage


BFLOAT16 = Format(name="bf16")
FLOAT8 = Format(name="fp8", layers=Storage(num_bytes=1), is_float8=True)
INT4 = Format(name="int4", layers=packed_storage("int4", GRIDS[4]))
Q6_K = packed_storage("Q6_K", BLOCK_LAYOUTS["Q6_K"])
Q4_K_M = Format(name="Q4_K_M", layers=packed_storage("Q4_K", BLOCK_LAYOUTS["Q4_K"]), more=Q6_K, head=Q6_K)
FORMATS = (BFLOAT16, FLOAT8, INT4, Q4_K_M)


LLAMA_8B = Shapes(  # Llama 3.1 8B
    vocab_size=128_256,
    hidden_size=4096,
    intermediate_size=14_336,
    num_layers=32,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
)
