"""StoredMatrix: a matrix of a Hugging Face folder that is stored in few bits, as several tensors."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from caravan.model.checkpoint import BrokenCheckpoint
from caravan.model.checkpoint.json_file import JsonFile
from caravan.model.config import UnsupportedModel

GROUP = 32  # inputs of a block of Q4_0, Q4_1 or Q8_0

Load = Callable[[str], Tensor]  # a tensor of the files by its name
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class QuantizedTensor:
    """A matrix that is stored in few bits."""

    shape: tuple[int, int]  # [out, in]
    sources: tuple[str, ...]  # its tensors in the files
    widen: Callable[[], Tensor]  # [out, in] in float32
    kind: str | None = None  # of the blocks that keep it, a key of BLOCK_SIZES; None if none do
    blocks: Callable[[], Tensor] | None = None  # [out, bytes] uint8, with a kind


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
