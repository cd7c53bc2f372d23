"""Write GGUF files of random weights in the shapes of real models: `python -m benchmarks.shapes 1B Q4_K_M FILE`.

Speed and memory depend on shapes and types alone, so no model needs to be fetched. The vocabulary and the chat template
are those of the default model, which `--vocabulary 128256` fills up to Llama 3's size; what such a file generates is
noise.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from caravan.download.resolve import DEFAULT_MODEL, resolve_model
from caravan.model.blocks import BLOCK_SIZES, NVFP4_WITH_FACTOR

RMS = 0.02  # of the weights
# Where a block has numbers in float16, and how many steps of each of them a weight spans.
_NUMBERS = MappingProxyType(
    {
        "Q4_0": ((0, 8),),
        "Q4_1": ((0, 8), (2, 1)),
        "Q5_0": ((0, 16),),
        "Q5_1": ((0, 16), (2, 1)),
        "Q8_0": ((0, 128),),
        "IQ4_NL": ((0, 64),),
        "Q2_K": ((80, 16), (82, 16)),
        "Q3_K": ((108, 64),),
        "Q4_K": ((0, 256), (2, 32)),
        "Q5_K": ((0, 512), (2, 32)),
        "Q6_K": ((208, 2048),),
        "IQ4_XS": ((0, 1024),),
        "MXFP4": (),
        "NVFP4": (),
        NVFP4_WITH_FACTOR: (),
    }
)


@dataclass(frozen=True)
class Shape:
    """The architecture of a model; the head_dim is that of the queries."""

    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    tied: bool = False


SHAPES = MappingProxyType(
    {
        "135M": Shape(576, 1536, 30, 9, 3, 64, tied=True),  # SmolLM2
        "1B": Shape(2048, 8192, 16, 32, 8, 64, tied=True),  # Llama 3.2
        "3B": Shape(3072, 8192, 28, 24, 8, 128, tied=True),  # Llama 3.2
        "8B": Shape(4096, 14336, 32, 32, 8, 128),  # Llama 3.1
    }
)


def has_more_bits(layer: int, num_layers: int) -> bool:
    """Return whether llama-quantize gives a layer's values and down projection more bits in a file of kind _M."""
    return layer < num_layers // 8 or layer >= 7 * num_layers // 8 or (layer - num_layers // 8) % 3 == 2


def kind_of(name: str, layer: int, shape: Shape, file_type: str) -> str:
    """Return the kind of blocks of a matrix; a kind such as Q6_K alone is that of all matrices."""
    if not file_type.endswith("_M"):
        return file_type
    if name in ("attn_v", "ffn_down") and has_more_bits(layer, shape.layers):
        return "Q6_K"
    return "Q6_K" if name == "output" or (name == "token_embd" and shape.tied) else file_type.removesuffix("_M")


def float_places(kind: str) -> tuple[int, ...]:
    """Return where a block has numbers in float16."""
    return tuple(place for place, _ in _NUMBERS[kind])


def random_blocks(kind: str, rows: int, width: int, random: np.random.Generator) -> NDArray[np.uint8]:
    """Return a matrix [rows, bytes] of random blocks whose weights are about RMS."""
    num_inputs, num_bytes = BLOCK_SIZES[kind]
    blocks = random.integers(0, 256, (rows, width // num_inputs, num_bytes), dtype=np.uint8)
    for place, num_steps in _NUMBERS[kind]:
        sizes = (RMS * random.uniform(1, 2, blocks.shape[:2]) / num_steps).astype(np.float16)
        blocks[..., place : place + 2] = sizes[..., None].view(np.uint8)
    set_float4_scales(kind, blocks, RMS / 3, random)
    return blocks.reshape(rows, -1)


def set_float4_scales(kind: str, blocks: NDArray[np.uint8], size: float, random: np.random.Generator) -> None:
    """Set the scales of blocks in MXFP4 or NVFP4 to between half of `size` and `size`, or near to it.

    NVFP4 without a factor has no scales below 2^-9.
    """
    if kind == "MXFP4":
        blocks[..., 0] = 127 + np.floor(np.log2(size)) - random.integers(0, 2, blocks.shape[:2])
    elif kind == "NVFP4":
        blocks[..., :4] = np.maximum(1, size * 2**9 * random.uniform(0.5, 1, (*blocks.shape[:2], 4)))
    elif kind == NVFP4_WITH_FACTOR:
        blocks[..., :4] = np.array([size / 448], np.float32).view(np.uint8)
        blocks[..., 4:8] = random.integers(0x77, 0x7F, (*blocks.shape[:2], 4))


def matrices(shape: Shape) -> Iterator[tuple[str, str, int, int, int]]:
    """Yield (tensor, its kind of name, layer, rows, width) of every matrix of the layers."""
    q, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    for layer in range(shape.layers):
        for name, rows, width in (
            ("attn_q", q, shape.hidden),
            ("attn_k", kv, shape.hidden),
            ("attn_v", kv, shape.hidden),
            ("attn_output", shape.hidden, q),
            ("ffn_gate", shape.inner, shape.hidden),
            ("ffn_up", shape.inner, shape.hidden),
            ("ffn_down", shape.hidden, shape.inner),
        ):
            yield f"blk.{layer}.{name}.weight", name, layer, rows, width


def filled_up(name: str, values: list[Any], vocab_size: int) -> list[Any]:
    """Return a list of the vocabulary, which has one item for each token, with tokens that no text has at its end."""
    numbers = range(len(values), vocab_size)
    match name:
        case "tokenizer.ggml.tokens":
            return values + [f"word{number}" for number in numbers]  # generated at random: each shows some text
        case "tokenizer.ggml.token_type":
            return values + [gguf.TokenType.NORMAL] * len(numbers)
        case "tokenizer.ggml.scores":
            return values + [0.0] * len(numbers)
    return values


def write_model(path: Path, shape: Shape, file_type: str, vocab_size: int = 0) -> None:
    """Write the file. The fields of the vocabulary are copied from the default model and filled up to `vocab_size`."""
    source = gguf.GGUFReader(resolve_model(DEFAULT_MODEL, lambda _: None))
    writer = gguf.GGUFWriter(path, "llama", use_temp_file=False)
    num_tokens = 0
    for field in source.fields.values():
        if field.name.startswith("tokenizer."):
            value, kind = field.contents(), field.types[0]
            value = filled_up(field.name, value, vocab_size) if isinstance(value, list) else value
            writer.add_key_value(field.name, value, kind, field.types[-1] if len(field.types) > 1 else None)
            num_tokens = len(value) if field.name == "tokenizer.ggml.tokens" else num_tokens
    writer.add_block_count(shape.layers)
    writer.add_context_length(131_072)
    writer.add_embedding_length(shape.hidden)
    writer.add_feed_forward_length(shape.inner)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(500_000.0)
    random = np.random.default_rng(0)

    def add(tensor: str, name: str, layer: int, rows: int, width: int) -> None:
        kind = kind_of(name, layer, shape, file_type)
        writer.add_tensor(tensor, random_blocks(kind, rows, width, random), raw_dtype=GGMLQuantizationType[kind])

    def add_norm(tensor: str) -> None:
        writer.add_tensor(tensor, np.ones(shape.hidden, dtype=np.float32))

    add("token_embd.weight", "token_embd", 0, num_tokens, shape.hidden)
    add_norm("output_norm.weight")
    if not shape.tied:
        add("output.weight", "output", 0, num_tokens, shape.hidden)
    for layer in range(shape.layers):
        add_norm(f"blk.{layer}.attn_norm.weight")
        add_norm(f"blk.{layer}.ffn_norm.weight")
    for matrix in matrices(shape):
        add(*matrix)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    """Write the file that the arguments name."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument(
        "type",
        choices=[
            "Q3_K_M",
            "Q4_K_M",
            "Q5_K_M",
            *(kind for kind in BLOCK_SIZES if kind in GGMLQuantizationType.__members__),
        ],
    )
    parser.add_argument("file", type=Path)
    parser.add_argument("--vocabulary", type=int, default=0, help="number of tokens, if more than the default model's")
    arguments = parser.parse_args()
    write_model(arguments.file, SHAPES[arguments.shape], arguments.type, arguments.vocabulary)


if __name__ == "__main__":
    main()
