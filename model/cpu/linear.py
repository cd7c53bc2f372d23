"""PackedLinear: a linear layer with its weights in the order in which the kernels read them."""

import itertools
from collections.abc import Iterable, Iterator
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from caravan.model.blocks import StoredRows, WeightPart
from caravan.model.checkpoint.checkpoint import Weight
from caravan.model.checkpoint.unread_rows import UnreadRows
from caravan.model.cpu.arena import Arena
from caravan.model.cpu.kernels import Kernels, PassedWeight, WeightFormat
from caravan.model.cpu.packing import (
    BLOCK_FORMATS,
    TILE,
    num_packed_bytes,
    pack_bfloat16,
    pack_blocks,
    pack_bytes,
    pack_grid,
)
from caravan.model.linear import Linear
from caravan.model.quantization import GroupedWeight, dequantize, quantize, to_bytes
from caravan.model.rms_norm import RMSNorm

Quantization = Literal["none", "native", "int8", "int4"]
_NUMBERS_AT_ONCE = 2**20  # that are packed at once: it takes up to 16 bytes for each


class PackedPart(NamedTuple):
    """Some outputs of a packed weight."""

    packed: Tensor  # [bytes] uint8
    weight_format: WeightFormat
    num_outputs: int


class PackedLinear(Linear):
    """A linear layer with packed weights, after a norm if there is one.

    Quantization `none` keeps the weights in bfloat16. `native` keeps them as the files have them, in parts where they
    are in several kinds of blocks, and rounds rows to 8 bits with a scale and a zero point for each 32. `int8` rounds
    weights and rows to 8 bits in groups of 64; on a processor without products of bytes, weights on a grid of 4 bits
    stay on it, which is faster. `int4` stores weights on a grid of 4 bits, or on the grid of the file, and multiplies
    rows in bfloat16; the weights are not rounded to it.
    The bits of a row do not depend on the number of rows.
    """

    weight: None  # type: ignore[assignment]  # it is packed

    def __init__(
        self, plain: Linear, kernels: Kernels, arena: Arena, quantization: Quantization, norm: RMSNorm | None = None
    ) -> None:
        """Replace `plain`, which has no weights yet."""
        super().__init__(plain.in_features, plain.out_features, has_bias=plain.bias is not None)
        self.weight = None
        self.packed = nn.ParameterList([_parameter(torch.empty(0, dtype=torch.uint8, device="meta"))])
        self.parts: list[PackedPart] = []
        self.norm = norm
        self.quantization = quantization
        self._passed: PassedWeight = [], [], []
        self._kernels = kernels
        self._linear = kernels.linear.default
        self._arena = arena

    def place(self, weight: Weight) -> None:
        """Pack weight [out, in], or its parts. Raises NotFinite."""
        if isinstance(weight, UnreadRows):
            self.place_pieces(piece for _, piece in weight.pieces(rows_at_once(*weight.shape)))
            return
        parts: list[PackedPart] = []
        if isinstance(weight, list):
            for kind, some in itertools.groupby(weight, lambda part: getattr(part, "kind", None)):
                parts += self._pack_parts(kind, list(some))
        else:
            parts.append(self._pack(weight))
        self.place_packed(parts)

    def place_pieces(self, pieces: Iterable[Tensor | GroupedWeight]) -> None:
        """Pack the weight [out, in] as its rows come; each piece but the last one has whole tiles of them."""
        self.place_packed([self._packed(pieces, self.out_features)])

    def place_packed(self, parts: list[PackedPart]) -> None:
        """Set the weight to packed parts, which together have all outputs; their memory is never written."""
        self.packed = nn.ParameterList(_parameter(part.packed) for part in parts)
        self.parts = parts
        self._passed = (
            [part.packed for part in parts],
            [part.weight_format.value for part in parts],
            [part.num_outputs for part in parts],
        )

    @property
    def formats(self) -> list[WeightFormat]:
        """The formats of the parts."""
        return [part.weight_format for part in self.parts]

    def passed(self) -> PassedWeight:
        """Return the weight as the kernels take it."""
        return self._passed

    def forward(self, x: Tensor) -> Tensor:
        """Return [T, out] in float32 for x [T, in], normalised first if there is a norm."""
        norm = self.norm
        return self._linear(
            x,
            *self._passed,
            "" if norm is None else "rms_norm",
            None if norm is None else norm.weight,
            0.0 if norm is None else norm.eps,
            self.bias,
            None,  # no residual
            True,  # float32
        )

    def _pack_parts(self, kind: str | None, parts: list[WeightPart]) -> list[PackedPart]:
        """Return packed parts; those of one kind of blocks become one."""
        rows = [part for part in parts if isinstance(part, StoredRows)]
        if kind is None:
            return [self._pack(part) for part in parts if isinstance(part, Tensor)]
        num_outputs = sum(len(part.order) for part in rows)
        packed = pack_blocks(rows, self.in_features, self._kernels, self._arena)
        return [PackedPart(packed, BLOCK_FORMATS[kind], num_outputs)]

    def _pack(self, weight: Tensor | GroupedWeight) -> PackedPart:
        ranges = rows_at_once(*weight.shape)
        if isinstance(weight, GroupedWeight):
            return self._packed(map(weight.outputs, ranges), len(weight.values))
        return self._packed((weight[rows] for rows in ranges), len(weight))

    def _packed(self, pieces: Iterable[Tensor | GroupedWeight], num_outputs: int) -> PackedPart:
        """Return the outputs of all pieces packed; they are of one kind."""
        weight_format: WeightFormat | None = None
        packed, end = torch.empty(0, dtype=torch.uint8), 0
        for piece in pieces:
            if weight_format is None:
                grid_bits = 4 if self.quantization == "int4" else None
                if isinstance(piece, GroupedWeight):
                    grid_bits = piece.bits
                has_byte_products = self._kernels.has_byte_products()
                weight_format = format_of(self.quantization, grid_bits, has_byte_products=has_byte_products)
                packed = self._arena.empty(num_packed_bytes(num_outputs, self.in_features, weight_format))
            rows = _packed_rows(piece, weight_format)
            packed[end : end + len(rows)] = rows
            end += len(rows)
        assert weight_format is not None, "a layer has outputs"
        return PackedPart(packed, weight_format, num_outputs)


def rows_at_once(num_rows: int, num_columns: int, first_row: int = 0) -> Iterator[slice]:
    """Yield the rows of a matrix in parts of whole tiles, few enough that changing a part takes little memory."""
    step = TILE * max(1, _NUMBERS_AT_ONCE // (num_columns * TILE))
    for first in range(first_row, num_rows, step):
        yield slice(first, min(first + step, num_rows))


def _packed_rows(weight: Tensor | GroupedWeight, weight_format: WeightFormat) -> Tensor:
    """Return some outputs of a weight packed, [bytes] uint8."""
    match weight_format:
        case WeightFormat.BFLOAT16:
            return pack_bfloat16(_wide(weight))
        case WeightFormat.INT8:
            return pack_bytes(to_bytes(_wide(weight)))
    return pack_grid(weight if isinstance(weight, GroupedWeight) else quantize(weight, 4))


def _wide(weight: Tensor | GroupedWeight) -> Tensor:
    return dequantize(weight) if isinstance(weight, GroupedWeight) else weight


def _parameter(packed: Tensor) -> nn.Parameter:
    return nn.Parameter(packed, requires_grad=False)


def format_of(quantization: Quantization, grid_bits: int | None, *, has_byte_products: bool) -> WeightFormat:
    """Return the format of a weight that the files have on a grid of grid_bits bits, or on none."""
    match quantization:
        case "none" | "native":  # of a weight that is not in blocks
            return WeightFormat.BFLOAT16
        case "int8":
            return WeightFormat.INT8 if has_byte_products or grid_bits != 4 else WeightFormat.GRID_4_INT8
        case "int4":
            return WeightFormat.GRID_8 if grid_bits == 8 else WeightFormat.GRID_4
