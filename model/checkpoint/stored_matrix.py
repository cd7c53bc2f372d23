"""StoredMatrix: a matrix of a Hugging Face folder that is stored in few bits, as several tensors."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from caravan.model.blocks import BLOCK_SIZES
from caravan.model.checkpoint import ALL_ROWS, BrokenCheckpoint
from caravan.model.checkpoint.json_file import JsonFile
from caravan.model.config import UnsupportedModel

GROUP = 32  # inputs of a block of Q4_0, Q4_1 or Q8_0
_NUMBERS_AT_ONCE = 2**18  # that are read at once: it takes up to 16 bytes for each

Load = Callable[[str], Tensor]  # a tensor of the files by its name; it is mapped, so only rows in use are read
Shapes = Mapping[str, tuple[int, ...]]


ReadRows = Callable[[slice], Tensor]  # some rows of a matrix, with a start, a stop and a step


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """A matrix in blocks: `heads` and `values` return the bytes of each block for some rows, [rows, blocks, bytes]."""

    kind: str  # a key of BLOCK_SIZES
    shape: tuple[int, int]  # [out, in]
    heads: ReadRows  # scales and the like, which stand before the values
    values: ReadRows

    def read(self, rows: slice) -> Tensor:
        """Return some rows of the matrix, or all, [rows, bytes] uint8."""
        num_inputs, num_bytes = BLOCK_SIZES[self.kind]
        num_rows = len(range(*rows.indices(self.shape[0])))
        out = torch.empty(num_rows, self.shape[1] // num_inputs, num_bytes, dtype=torch.uint8)
        for place, some in _pieces(self.shape, rows):
            torch.cat((self.heads(some), self.values(some)), dim=-1, out=out[place])
        return out.flatten(1)

    def all_heads(self) -> Iterator[Tensor]:
        """Yield the heads of all blocks, some rows at a time."""
        return (self.heads(some) for _, some in _pieces(self.shape, ALL_ROWS))


@dataclass(frozen=True, kw_only=True)
class QuantizedTensor:
    """A matrix that is stored in few bits."""

    shape: tuple[int, int]  # [out, in]
    sources: tuple[str, ...]  # its tensors in the files
    widen: ReadRows  # in float32
    blocks: Blocks | None = None  # that keep it, if any do

    def read(self, out: Tensor, rows: slice) -> None:
        """Write some rows of the matrix, or all, into `out`."""
        for place, some in _pieces(self.shape, rows):
            out[place] = self.widen(some)


@dataclass(frozen=True)
class StoredMatrix:
    """The tensors of one matrix."""

    config: JsonFile
    stem: str  # X of X.weight
    shapes: Shapes
    types: Mapping[str, str]
    load_any: Load

    def shape(self, leaf: str, num_dims: int = 2) -> tuple[int, ...]:
        """Return the shape of a tensor of this matrix; raises BrokenCheckpoint if it is not there or empty."""
        shape = self.shapes.get(f"{self.stem}.{leaf}")
        if shape is None or len(shape) != num_dims or 0 in shape:
            raise self.broken(f"{leaf} is missing, empty or has not {num_dims} dimensions")
        return shape

    def load(self, leaf: str, *shape: int) -> Tensor:
        """Return a tensor of this matrix, which must have that shape."""
        if self.shapes.get(f"{self.stem}.{leaf}") != shape:
            raise self.broken(f"{leaf} has the shape {self.shapes.get(f'{self.stem}.{leaf}')}; it must be {shape}")
        return self.load_any(f"{self.stem}.{leaf}")

    def load_as(self, types: tuple[str, ...], leaf: str, *shape: int) -> Tensor:
        """Return a tensor of this matrix, which must have that shape and one of those types."""
        stored_type = self.types.get(f"{self.stem}.{leaf}")
        if stored_type not in (None, *types):
            raise self.broken(f"{leaf} has the type {stored_type}; it must be {' or '.join(types)}")
        return self.load(leaf, *shape)

    def load_number(self, leaf: str) -> float:
        """Return the number in a tensor of this matrix, which must be one in float32."""
        shape = () if self.shapes.get(f"{self.stem}.{leaf}") == () else (1,)
        return float(self.load_as(("F32",), leaf, *shape))

    def has(self, leaf: str) -> bool:
        return f"{self.stem}.{leaf}" in self.shapes

    def names(self, *leaves: str) -> tuple[str, ...]:
        """Return the names in the files of those that are there."""
        return tuple(f"{self.stem}.{leaf}" for leaf in leaves if self.has(leaf))

    def broken(self, fact: str) -> BrokenCheckpoint:
        return BrokenCheckpoint(f"{self.config.path.parent}: {ascii(self.stem)[1:-1][:80]}: {fact}.")


def unsupported(config: JsonFile, what: str) -> UnsupportedModel:
    return UnsupportedModel(
        f"{config.path.parent} has weights {what}, which is not supported. "
        "Take the model's original, or a GGUF file of it."
    )


def weight_schemes(config: JsonFile) -> list[dict[str, Any]]:
    """Return how the weights of each group of layers are quantized, by compressed-tensors."""
    groups = config.part("config_groups")
    schemes = [
        scheme.get("weights") for scheme in (groups.raw() if groups else {}).values() if isinstance(scheme, dict)
    ]
    return [scheme for scheme in schemes if isinstance(scheme, dict)]


def _pieces(shape: tuple[int, int], rows: slice) -> Iterator[tuple[slice, slice]]:
    """Yield some rows of a matrix in parts: their places in the result, and the rows."""
    wanted = range(*rows.indices(shape[0]))
    count = GROUP * max(1, _NUMBERS_AT_ONCE // (GROUP * shape[1]))
    for start in range(0, len(wanted), count):
        some = wanted[start : start + count]
        yield slice(start, start + len(some)), slice(some[0], some[-1] + 1, some.step)
