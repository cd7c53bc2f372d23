"""PackedLinear: a linear layer with its weights in the order in which the kernels read them."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from caravan.model.cpu.arena import Arena
from caravan.model.cpu.kernels import Kernels, WeightFormat
from caravan.model.linear import Linear
from caravan.model.llama import RMSNorm
from caravan.model.quantization import BYTE_GROUP, GROUP, ByteWeight, GroupedWeight, dequantize, quantize, to_bytes

Quantization = Literal["none", "int8", "int4"]
TILE = 32  # outputs that are stored together
ROWS_AT_ONCE = (
    128 * TILE
)  # rows of a weight that are rounded at once: rounding takes many times the memory of the result


class PackedLinear(Linear):
    """A linear layer with packed weights, after a norm if there is one.

    Quantization `none` keeps the weights in bfloat16. `int8` rounds weights and rows to 8 bits in groups of 64 and
    multiplies bytes; on a processor without products of bytes, weights on a grid of 4 bits stay on it and rows have a
    scale for each 32, which is faster. `int4` stores weights on a grid of 4 bits, or on the grid of the file, and
    multiplies rows in bfloat16; the weights are not rounded to it.
    The bits of a row do not depend on the number of rows.
    """

    weight: None  # type: ignore[assignment]  # it is packed

    def __init__(
        self, plain: Linear, kernels: Kernels, arena: Arena, quantization: Quantization, norm: RMSNorm | None = None
    ) -> None:
        """Replace `plain`, which has no weights yet."""
        super().__init__(plain.in_features, plain.out_features, has_bias=plain.bias is not None)
        self.weight = None
        self.packed = nn.Parameter(torch.empty(0, dtype=torch.uint8, device="meta"), requires_grad=False)
        self.format = WeightFormat.BFLOAT16
        self.norm = norm
        self.quantization = quantization
        self._linear = kernels.linear.default
        self._has_byte_products = kernels.has_byte_products()
        self._arena = arena

    def place(self, weight: Tensor | GroupedWeight) -> None:
        """Pack weight [out, in]."""
        if self.quantization == "int4" and not isinstance(weight, GroupedWeight):
            weight = quantize(weight, 4)
        grid_bits = weight.bits if isinstance(weight, GroupedWeight) else None
        self.format = format_of(self.quantization, grid_bits, has_byte_products=self._has_byte_products)
        if self.format in (WeightFormat.BFLOAT16, WeightFormat.INT8) and isinstance(weight, GroupedWeight):
            weight = dequantize(weight)
        match weight:
            case GroupedWeight():
                packed = pack_grid(weight)
            case _ if self.format == WeightFormat.INT8:
                packed = torch.cat([pack_bytes(to_bytes(rows)) for rows in torch.split(weight, ROWS_AT_ONCE)])
            case _:
                packed = pack_bfloat16(weight)
        self.packed = nn.Parameter(self._arena.allocate(packed), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return [T, out] in float32 for x [T, in], normalised first if there is a norm."""
        norm = self.norm
        return self._linear(
            x,
            self.packed,
            self.format.value,
            self.out_features,
            "" if norm is None else "rms_norm",
            None if norm is None else norm.weight,
            0.0 if norm is None else norm.eps,
            self.bias,
            None,  # no residual
            True,  # float32
        )


def format_of(quantization: Quantization, grid_bits: int | None, *, has_byte_products: bool) -> WeightFormat:
    """Return the format of a weight that the files have on a grid of grid_bits bits, or on none."""
    match quantization:
        case "none":
            return WeightFormat.BFLOAT16
        case "int8":
            return WeightFormat.INT8 if has_byte_products or grid_bits != 4 else WeightFormat.GRID_4_INT8
        case "int4":
            return WeightFormat.GRID_8 if grid_bits == 8 else WeightFormat.GRID_4


def num_packed_bytes(num_outputs: int, num_inputs: int, weight_format: WeightFormat) -> int:
    """Return the size of a packed weight."""
    num_outputs = -(-num_outputs // TILE) * TILE
    match weight_format:
        case WeightFormat.BFLOAT16:
            return num_outputs * -(-num_inputs // 2) * 4
        case WeightFormat.INT8:
            return num_outputs * -(-num_inputs // BYTE_GROUP) * (2 + BYTE_GROUP)
        case _:
            bits = 8 if weight_format == WeightFormat.GRID_8 else 4
            return num_outputs * -(-num_inputs // GROUP) * (4 + GROUP * bits // 8)


def pack_bfloat16(weight: Tensor) -> Tensor:
    """Return weight [out, in] as bytes in the order [tile of 32 outputs][pair of inputs][32][2], bfloat16."""
    num_outputs, num_inputs = weight.shape
    padded = F.pad(weight.to(torch.bfloat16), (0, num_inputs % 2, 0, -num_outputs % TILE))
    tiles = padded.view(-1, TILE, padded.shape[1] // 2, 2)
    return tiles.transpose(1, 2).contiguous().view(torch.uint8).flatten()


def pack_bytes(weight: ByteWeight) -> Tensor:
    """Return the weight as bytes: for each tile of 32 outputs and group of 64 inputs, scales, then values + 128.

    Values are [quad of inputs][32 outputs][4].
    """
    num_outputs, num_inputs = weight.values.shape
    missing = -num_outputs % TILE
    values = F.pad(weight.values.view(torch.uint8) ^ 128, (0, -num_inputs % BYTE_GROUP, 0, missing), value=128)
    values = values.view(-1, TILE, values.shape[1] // BYTE_GROUP, BYTE_GROUP // 4, 4).permute(0, 2, 3, 1, 4)
    scales = F.pad(weight.scales, (0, 0, 0, missing)).view(-1, TILE, weight.scales.shape[1]).transpose(1, 2)
    return torch.cat((scales.contiguous().view(torch.uint8), values.flatten(2)), dim=-1).flatten()


def pack_grid(weight: GroupedWeight) -> Tensor:
    """Return the weight as bytes: for each tile of 32 outputs and group of 32 inputs, scales, offsets and values.

    Values of 8 bits are [quad of inputs][32 outputs][4]; of 4 bits [quad][16][4], outputs 0 to 15 in the low halves.
    """
    num_outputs, num_inputs = weight.shape
    missing = -num_outputs % TILE
    values = F.pad(weight.values, (0, -num_inputs % GROUP, 0, missing))
    values = values.view(-1, TILE, values.shape[1] // GROUP, GROUP // 4, 4).permute(0, 2, 3, 1, 4)
    if weight.bits == 4:
        values = values[..., : TILE // 2, :] | values[..., TILE // 2 :, :] << 4
    grid = torch.stack((weight.scales, weight.offsets), dim=-1)  # [out, groups, 2]
    grid = F.pad(grid, (0, 0, 0, 0, 0, missing)).view(-1, TILE, grid.shape[1], 2).permute(0, 2, 3, 1)
    return torch.cat((grid.contiguous().view(torch.uint8).flatten(2), values.flatten(2)), dim=-1).flatten()
