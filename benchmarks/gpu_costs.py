"""What a step on a GPU would take: bytes and operations of each kernel, against published peaks. Nothing is measured."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.gpu_shapes import Format, Gpu, Shapes

DECODE_ROWS = 16  # query rows of a tile of attention, most of them empty
PRODUCT_ROWS = 64  # rows of the smallest tile of a matrix product
SPLIT_TOKENS = 512
NUMBER = 2  # bytes between the layers
EXPONENTIAL = 35  # float64 instructions of a weight of the sampler
DEQUANTIZATION = 7  # instructions for a weight in 4 bits, in each tile of rows: estimated, not counted in machine code
GAP = 1.5e-6  # seconds between two kernels of a CUDA graph: assumed
CONTEXT = 1024


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What all launches of a kernel move and compute in one step."""

    kernel: str
    launches: int
    num_bytes: float
    matrix_operations: float = 0
    instructions: float = 0  # of float32 and integers
    float64_instructions: float = 0
    is_float8: bool = False

    def seconds(self, gpu: Gpu) -> float:
        """Return the time at the GPU's peaks: that of the memory or of the operations, whichever is longer."""
        peak = gpu.float8 if self.is_float8 and gpu.float8 else gpu.bfloat16
        return max(
            self.num_bytes / gpu.bytes_per_second,
            self.matrix_operations / peak,
            self.instructions / (gpu.float32 / 2),  # peaks count a product and a sum for each instruction
            self.float64_instructions / (gpu.float64 / 2),
        )


def decode_costs(shapes: Shapes, weights: Format, num_streams: int, context: int = CONTEXT) -> list[Cost]:
    """Return the costs of a step in which each stream decodes one token after `context` tokens."""
    layers, hidden = shapes.num_layers, shapes.hidden_size
    heads = shapes.num_heads + 2 * shapes.num_kv_heads
    kv_numbers = 2 * shapes.num_kv_heads * shapes.head_dim  # of a token and layer
    num_splits = math.ceil(context / SPLIT_TOKENS)
    split_bytes = num_streams * shapes.num_heads * num_splits * (shapes.head_dim + 2) * 4
    query_bytes = num_streams * shapes.num_heads * shapes.head_dim * NUMBER
    rows = num_streams * hidden * NUMBER

    def rest(kernel: str, num_bytes: float, launches: int = layers) -> Cost:
        return Cost(kernel=kernel, launches=launches, num_bytes=num_bytes * launches)

    return [
        rest("embedding", 2 * rows, 1),
        rest("norm with residual", 4 * rows, 2 * layers + 1),
        *_products(shapes, weights, num_streams),
        rest(
            "rotate and write", num_streams * (heads * shapes.head_dim * 2 * NUMBER + kv_numbers * weights.kv_bytes)
        ),
        Cost(
            kernel="attention",
            launches=layers,
            num_bytes=layers * (num_streams * context * kv_numbers * weights.kv_bytes + query_bytes + split_bytes),
            matrix_operations=layers * num_streams * context * kv_numbers * 2 * DECODE_ROWS,
        ),
        rest("merge of splits", split_bytes + query_bytes),
        rest("SwiGLU", num_streams * shapes.intermediate_size * 3 * NUMBER),
        *_sampler(shapes, num_streams),
    ]


def prefill_costs(shapes: Shapes, weights: Format, num_tokens: int) -> list[Cost]:
    """Return the costs of the matrices in a step with a prompt of num_tokens, of which one row is sampled."""
    layers = shapes.num_layers
    width = shapes.num_heads * shapes.head_dim
    layer_products, head = _products(shapes, weights, num_tokens)[:-1], _head(shapes, 1)
    attention = Cost(
        kernel="attention",
        launches=layers,
        num_bytes=layers * num_tokens * (2 * width + 2 * shapes.num_kv_heads * shapes.head_dim) * NUMBER,
        matrix_operations=layers * 2 * num_tokens**2 * width,  # half of the scores are masked
    )
    return [*layer_products, attention, head]


def roof(shapes: Shapes, weights: Format, num_streams: int, gpu: Gpu, context: int = CONTEXT) -> float:
    """Return tokens a second if a step took no more than to read its weights and keys and values once."""
    kv_numbers = 2 * shapes.num_layers * shapes.num_kv_heads * shapes.head_dim * context
    num_bytes = (
        shapes.num_layer_weights() * weights.weight_bytes
        + shapes.vocab_size * shapes.hidden_size * NUMBER
        + num_streams * kv_numbers * weights.kv_bytes
    )
    return num_streams / (num_bytes / gpu.bytes_per_second)


def step_seconds(costs: list[Cost], gpu: Gpu, gap: float = GAP) -> float:
    """Return the time of a step whose kernels run one after the other, `gap` seconds apart."""
    return sum(cost.seconds(gpu) + cost.launches * gap for cost in costs)


def _products(shapes: Shapes, weights: Format, num_rows: int) -> list[Cost]:
    """Return the costs of the layers' matrix products and of the output head; a tile has 64 rows or more."""
    padded = math.ceil(num_rows / PRODUCT_ROWS) * PRODUCT_ROWS
    num_tiles = math.ceil(num_rows / (PRODUCT_ROWS if num_rows <= 512 else 2 * PRODUCT_ROWS))
    unpacking = DEQUANTIZATION * num_tiles if weights.is_packed else 0
    products = [
        Cost(
            kernel=f"product: {name}",
            launches=shapes.num_layers,
            num_bytes=shapes.num_layers
            * (outputs * inputs * weights.weight_bytes + num_rows * (outputs + inputs) * NUMBER),
            matrix_operations=shapes.num_layers * 2.0 * padded * outputs * inputs,
            instructions=shapes.num_layers * float(unpacking) * outputs * inputs,
            is_float8=weights.is_float8,
        )
        for name, (outputs, inputs) in shapes.products().items()
    ]
    return [*products, _head(shapes, num_rows)]


def _head(shapes: Shapes, num_rows: int) -> Cost:
    padded = math.ceil(num_rows / PRODUCT_ROWS) * PRODUCT_ROWS
    size = shapes.vocab_size * shapes.hidden_size
    num_bytes = size * NUMBER + num_rows * (shapes.hidden_size * NUMBER + shapes.vocab_size * 4)
    return Cost(kernel="product: head", launches=1, num_bytes=num_bytes, matrix_operations=2.0 * padded * size)


def _sampler(shapes: Shapes, num_rows: int) -> Iterator[Cost]:
    """Yield the costs of drawing a token with top_p from each row, no penalties and no log-probabilities.

    Of the weights, `collect` reads groups of 256 that hold a candidate: here all.
    """
    row = shapes.vocab_size * 4
    yield Cost(kernel="sampler: penalties and biases", launches=2, num_bytes=0)
    yield Cost(kernel="sampler: maxima", launches=1, num_bytes=num_rows * row)
    yield Cost(
        kernel="sampler: weights",
        launches=1,
        num_bytes=num_rows * 2 * row,
        float64_instructions=num_rows * shapes.vocab_size * EXPONENTIAL,
    )
    yield Cost(kernel="sampler: candidates and token", launches=3, num_bytes=num_rows * 2 * row)
