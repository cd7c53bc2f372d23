"""Weights from a GGUF file: each tensor checked, dequantized, renamed and put into our layout."""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

import gguf
import numpy as np
import torch
from torch import Tensor

from model.checkpoint import BrokenCheckpoint
from model.checkpoint.gguf_header import GgufHeader, GgufTensor
from model.config import ModelConfig, UnsupportedModel

_TYPES = {
    int(kind): kind
    for kind in map(
        gguf.GGMLQuantizationType.__getitem__,
        ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"],
    )
}
_Bytes = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]
_ROWS_AT_ONCE = 32
_NUM_NAMED = 3  # tensors named in an error; the rest are counted


def read_gguf_weights(header: GgufHeader, config: ModelConfig, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """Yield every weight of the model with our name for it, in dtype.

    Q, K and V become one matrix, gate and up become one. GGUF keeps the rows of Q and K in the order of interleaved
    rotary pairs; they are put into half-split order (see rope.py).
    Raises BrokenCheckpoint for tensors that are missing, misshapen, cut off or not finite; UnsupportedModel for
    surplus ones and for quantizations that are not supported.
    """
    _check_tensors(header, config)
    content: _Bytes = np.asarray(np.memmap(header.path, np.uint8, mode="r"))

    def weight(parts: list[_Part]) -> Tensor:
        return torch.cat([rearrange(_dequantized(header, source, content)).to(dtype) for source, rearrange in parts])

    sources = _sources(config)
    with ThreadPoolExecutor() as pool:  # numpy lets other threads run
        yield from zip(sources, pool.map(weight, sources.values()), strict=True)


def half_split(weight: Tensor, num_heads: int) -> Tensor:
    """Return the rows of a Q or K matrix so that dimension i of a head pairs with i + head_dim / 2.

    In the file, rows 2 i and 2 i + 1 of a head are a pair.
    """
    pairs = weight.view(num_heads, -1, 2, weight.shape[1])  # [num_heads, head_dim / 2, 2, hidden_size]
    return pairs.transpose(1, 2).reshape(weight.shape)


def expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Return the name and shape of every tensor the file of such a model has."""
    hidden, inner, vocab = config.hidden_size, config.intermediate_size, config.vocab_size
    q_rows, kv_rows = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (vocab, hidden), "output_norm.weight": (hidden,)}
    if not config.tie_embeddings:
        shapes["output.weight"] = (vocab, hidden)
    for layer in range(config.num_layers):
        block: dict[str, tuple[int, ...]] = {
            "attn_norm": (hidden,),
            "attn_q": (q_rows, hidden),
            "attn_k": (kv_rows, hidden),
            "attn_v": (kv_rows, hidden),
            "attn_output": (hidden, q_rows),
            "ffn_norm": (hidden,),
            "ffn_gate": (inner, hidden),
            "ffn_up": (inner, hidden),
            "ffn_down": (hidden, inner),
        }
        shapes |= {f"blk.{layer}.{name}.weight": shape for name, shape in block.items()}
    return shapes


_Part = tuple[str, Callable[[Tensor], Tensor]]  # a tensor of the file, and how its rows are rearranged


def _sources(config: ModelConfig) -> Mapping[str, list[_Part]]:
    """Return which tensors of the file make up each weight, one below the other."""

    def as_is(weight: Tensor) -> Tensor:
        return weight

    def q_rows(weight: Tensor) -> Tensor:
        return half_split(weight, config.num_heads)

    def k_rows(weight: Tensor) -> Tensor:
        return half_split(weight, config.num_kv_heads)

    sources: dict[str, list[_Part]] = {
        "embedding.weight": [("token_embd.weight", as_is)],
        "norm.weight": [("output_norm.weight", as_is)],
    }
    if not config.tie_embeddings:
        sources["output.weight"] = [("output.weight", as_is)]
    for layer in range(config.num_layers):
        parts: dict[str, list[_Part]] = {
            "attention_norm": [("attn_norm", as_is)],
            "attention.qkv": [("attn_q", q_rows), ("attn_k", k_rows), ("attn_v", as_is)],
            "attention.output": [("attn_output", as_is)],
            "feed_forward_norm": [("ffn_norm", as_is)],
            "feed_forward.gate_up": [("ffn_gate", as_is), ("ffn_up", as_is)],
            "feed_forward.down": [("ffn_down", as_is)],
        }
        for name, pieces in parts.items():
            sources[f"layers.{layer}.{name}.weight"] = [
                (f"blk.{layer}.{source}.weight", rearrange) for source, rearrange in pieces
            ]
    return sources


def _check_tensors(header: GgufHeader, config: ModelConfig) -> None:
    """Raise unless the file has exactly the tensors of this architecture, whole, apart, and of known types."""
    expected = expected_shapes(config)
    missing = [name for name in expected if name not in header.tensors]
    if missing:
        raise BrokenCheckpoint(f"{header.path} lacks {_listed(missing)}.")
    surplus = [name for name in header.tensors if name not in expected]
    if surplus:
        raise UnsupportedModel(f"{header.path} has {_listed(surplus)}, for which this architecture has no place.")
    extents: list[tuple[int, int, str]] = []
    for name, tensor in header.tensors.items():
        if tensor.shape != expected[name]:
            raise BrokenCheckpoint(
                f"{header.path}: {name} has the shape {list(tensor.shape)}; it must be {list(expected[name])}."
            )
        end = tensor.start + _num_bytes(header, name, tensor)
        if end > header.num_file_bytes:
            raise BrokenCheckpoint(
                f"{header.path} is cut off: {name} ends at byte {end}, the file at {header.num_file_bytes}. "
                "Fetch it again."
            )
        extents.append((tensor.start, end, name))
    extents.sort()
    for (_, end, name), (start, _, other) in itertools.pairwise(extents):
        if start < end:
            raise BrokenCheckpoint(f"{header.path}: {name} and {other} lie over each other.")


def _num_bytes(header: GgufHeader, name: str, tensor: GgufTensor) -> int:
    if tensor.type_number not in _TYPES:
        try:
            shown = gguf.GGMLQuantizationType(tensor.type_number).name
        except ValueError:
            shown = str(tensor.type_number)
        supported = ", ".join(kind.name for kind in _TYPES.values())
        raise UnsupportedModel(f"{header.path}: {name} has the type {shown}; supported are {supported}.")
    values_per_block, bytes_per_block = gguf.GGML_QUANT_SIZES[_TYPES[tensor.type_number]]
    if tensor.shape[-1] % values_per_block:
        raise BrokenCheckpoint(
            f"{header.path}: {name} has rows of {tensor.shape[-1]} values, no multiple of {values_per_block}."
        )
    return int(np.prod(tensor.shape)) // values_per_block * bytes_per_block


def _dequantized(header: GgufHeader, name: str, content: _Bytes) -> Tensor:
    """Return the tensor in float32, in the file's own order of rows."""
    tensor = header.tensors[name]
    stored = content[tensor.start : tensor.start + _num_bytes(header, name, tensor)]
    # The library works on 16 rows at a time; blocks know nothing of rows, so longer ones will do, and faster.
    long_rows = stored.reshape(tensor.shape[0] // math.gcd(tensor.shape[0], _ROWS_AT_ONCE), -1)
    values = gguf.dequantize(long_rows, _TYPES[tensor.type_number]).reshape(tensor.shape)
    weight = torch.from_numpy(np.require(values, np.float32, ["C", "W"]))  # a copy if it is a view of the file
    if not torch.stack(weight.aminmax()).isfinite().all():  # NaN passes through minimum and maximum
        raise BrokenCheckpoint(f"{header.path}: {name} holds values that are not finite numbers.")
    return weight


def _listed(names: list[str]) -> str:
    rest = f" and {len(names) - _NUM_NAMED} more" if len(names) > _NUM_NAMED else ""
    return f"the tensor{'s' * (len(names) > 1)} {', '.join(name for name in names[:_NUM_NAMED])}{rest}"
