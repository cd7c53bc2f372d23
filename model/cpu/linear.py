"""PackedLinear: a linear layer with its weights in the order in which the kernels read them."""

import itertools
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from caravan.model.blocks import StoredRows, WeightPart
from caravan.model.checkpoint.checkpoint import Weight
from caravan.model.cpu.arena import Arena
from caravan.model.cpu.kernels import Kernels, PassedWeight, WeightFormat
from caravan.model.cpu.packing import BLOCK_FORMATS, TILE, pack_bfloat16, pack_blocks, pack_bytes, pack_grid
from caravan.model.linear import Linear
from caravan.model.llama import RMSNorm
from caravan.model.quantization import GroupedWeight, dequantize, quantize, to_bytes

Quantization = Literal["none", "native", "int8", "int4"]
ROWS_AT_ONCE = 128 * TILE  # rows that are rounded at once: rounding takes many times the memory of the result


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
        parts: list[PackedPart] = []
        if isinstance(weight, list):
            for kind, some in itertools.groupby(weight, lambda part: getattr(part, "kind", None)):
                parts += self._pack_parts(kind, list(some))
        else:
            parts.append(self._pack(weight))
        self.place_packed(parts)

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
        if self.quantization == "int4" and not isinstance(weight, GroupedWeight):
            weight = quantize(weight, 4)
        grid_bits = weight.bits if isinstance(weight, GroupedWeight) else None
        weight_format = format_of(self.quantization, grid_bits, has_byte_products=self._kernels.has_byte_products())
        if weight_format in (WeightFormat.BFLOAT16, WeightFormat.INT8) and isinstance(weight, GroupedWeight):
            weight = dequantize(weight)
        num_outputs = weight.shape[0]
        match weight:
            case GroupedWeight():
                packed = pack_grid(weight)
            case _ if weight_format == WeightFormat.INT8:
                packed = torch.cat([pack_bytes(to_bytes(rows)) for rows in torch.split(weight, ROWS_AT_ONCE)])
            case _:
                packed = pack_bfloat16(weight)
        return PackedPart(self._arena.allocate(packed), weight_format, num_outputs)


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
