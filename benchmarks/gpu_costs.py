"""What a step on a GPU would take, from bytes and operations of its kernels and published peaks; never measured."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from benchmarks.gpu_shapes import Format, Gpu, Product, Shapes
from caravan.model.cuda.packed_layouts import FEW_ROWS, MANY_OUTPUTS

DECODE_ROWS = 16  # query rows of a tile of attention, most of them empty
PRODUCT_ROWS = 64  # rows of the smallest tile of a matrix product
SPLIT_TOKENS = 512
NUMBER = 2  # bytes between the layers
EXPONENTIAL = 35  # float64 instructions of a weight of the sampler
GAP = 1.5e-6  # seconds between two kernels of a CUDA graph: assumed
CONTEXT = 1024

PerWeight = Mapping[
    str, float
]  # kernel with its rows, such as `multiply, 64 rows` -> instructions of its loop for a weight


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What all launches of a kernel move and compute in one step."""

    kernel: str
    launches: int
    num_bytes: float
    matrix_operations: float = 0
    instructions: float = 0  # in the loops of matrix products, of all lanes
    float64_instructions: float = 0
    is_float8: bool = False

    def seconds(self, gpu: Gpu) -> float:
        """Return the time at the GPU's peaks: that of the memory or of the operations, whichever is longer."""
        peak = gpu.float8 if self.is_float8 and gpu.float8 else gpu.bfloat16
        return max(
            self.num_bytes / gpu.bytes_per_second,
            self.matrix_operations / peak,
            self.instructions / gpu.instructions,
            self.float64_instructions / (gpu.float64 / 2),  # a peak counts a product and a sum for an instruction
        )


def decode_costs(
    shapes: Shapes, weights: Format, num_streams: int, per_weight: PerWeight, context: int = CONTEXT
) -> list[Cost]:
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
        *_products(shapes, weights, num_streams, per_weight),
        _head(shapes, weights, num_streams, per_weight),
        rest("rotate and write", num_streams * (heads * shapes.head_dim * 2 * NUMBER + kv_numbers * weights.kv_bytes)),
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


def prefill_costs(shapes: Shapes, weights: Format, num_tokens: int, per_weight: PerWeight) -> list[Cost]:
    """Return the costs of the matrices in a step with a prompt of num_tokens, of which one row is sampled."""
    layers = shapes.num_layers
    width = shapes.num_heads * shapes.head_dim
    layer_products = _products(shapes, weights, num_tokens, per_weight)
    attention = Cost(
        kernel="attention",
        launches=layers,
        num_bytes=layers * num_tokens * (2 * width + 2 * shapes.num_kv_heads * shapes.head_dim) * NUMBER,
        matrix_operations=layers * 2 * num_tokens**2 * width,  # half of the scores are masked
    )
    return [*layer_products, attention, _head(shapes, weights, 1, per_weight)]


def roof(shapes: Shapes, weights: Format, num_streams: int, gpu: Gpu, context: int = CONTEXT) -> float:
    """Return tokens a second if a step took no more than to read its weights and keys and values once."""
    kv_numbers = 2 * shapes.num_layers * shapes.num_kv_heads * shapes.head_dim * context
    num_bytes = (
        weights.layer_bytes(shapes)
        + shapes.vocab_size * shapes.hidden_size * weights.head.num_bytes
        + num_streams * kv_numbers * weights.kv_bytes
    )
    return num_streams / (num_bytes / gpu.bytes_per_second)


def step_seconds(costs: list[Cost], gpu: Gpu, gap: float = GAP) -> float:
    """Return the time of a step whose kernels run one after the other, `gap` seconds apart."""
    return sum(cost.seconds(gpu) + cost.launches * gap for cost in costs)


def _products(shapes: Shapes, weights: Format, num_rows: int, per_weight: PerWeight) -> list[Cost]:
    """Return the costs of the layers' matrix products."""
    return [product_cost(one, num_rows, per_weight, is_float8=weights.is_float8) for one in weights.products(shapes)]


def product_cost(product: Product, num_rows: int, per_weight: PerWeight, *, is_float8: bool = False) -> Cost:
    """Return the cost of all launches of a product with num_rows rows."""
    name, launches, outputs, inputs, storage = product
    return Cost(
        kernel=f"product: {name}",
        launches=launches,
        num_bytes=launches * (outputs * inputs * storage.num_bytes + num_rows * (outputs + inputs) * NUMBER),
        matrix_operations=launches * 2.0 * _padded(num_rows) * outputs * inputs,
        instructions=launches * outputs * inputs * _instructions(storage.kernel, num_rows, outputs, per_weight),
        is_float8=is_float8,
    )


def _head(shapes: Shapes, weights: Format, num_rows: int, per_weight: PerWeight) -> Cost:
    """Return the cost of the output head."""
    size = shapes.vocab_size * shapes.hidden_size
    return Cost(
        kernel="product: head",
        launches=1,
        num_bytes=size * weights.head.num_bytes + num_rows * (shapes.hidden_size * NUMBER + shapes.vocab_size * 4),
        matrix_operations=2.0 * _padded(num_rows) * size,
        instructions=size * _instructions(weights.head.kernel, num_rows, shapes.vocab_size, per_weight),
    )


def _padded(num_rows: int) -> int:
    """Return the rows of whole tiles."""
    return math.ceil(num_rows / PRODUCT_ROWS) * PRODUCT_ROWS


def _instructions(kernel: str, num_rows: int, num_outputs: int, per_weight: PerWeight) -> float:
    """Return the instructions for a weight in all tiles of rows, each of which reads it."""
    is_plain = kernel == "multiply"
    if not is_plain and num_rows <= FEW_ROWS and num_outputs >= MANY_OUTPUTS:
        return per_weight[f"{kernel}, {FEW_ROWS} rows"]
    limit = next((limit for limit in (64, 512) if num_rows <= limit), 2048)
    tile = 64 if limit == 64 or (limit == 512 and is_plain) else 128
    return per_weight[f"{kernel}, {limit} rows"] * math.ceil(num_rows / tile)


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
