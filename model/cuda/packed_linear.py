"""PackedLinear: a linear layer on a GPU with weights of few bits."""

import itertools
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor, nn

from caravan.model.blocks import StoredRows, WeightPart
from caravan.model.cuda.linear import programs, write_product
from caravan.model.cuda.packed_kernels import multiply_packed, packed_tile
from caravan.model.cuda.packed_layouts import SIGN
from caravan.model.cuda.packing import PackedWeight, pack_bytes, pack_grid, pack_rows
from caravan.model.linear import Linear
from caravan.model.quantization import GroupedWeight, dequantize, quantize, to_bytes

PackedQuantization = Literal["native", "int8", "int4"]


class PackedLinear(Linear):
    """A linear layer whose weight is packed, in parts where the file has several kinds of blocks.

    `native` keeps blocks as the file has them. `int8` rounds weights to 8 bits with a scale for each 64 inputs, `int4`
    to 4 bits with a scale and an offset for each 32, or keeps the grid of the file, of 4 or of 8 bits. A weight is
    rounded to x's dtype when it is multiplied; sums are float32. The bits of a row depend on that row and the weight
    alone.
    """

    weight: None  # type: ignore[assignment]  # it is packed

    def __init__(self, plain: Linear, quantization: PackedQuantization) -> None:
        """Replace `plain`, which has no weights yet."""
        super().__init__(plain.in_features, plain.out_features, has_bias=plain.bias is not None)
        self.weight = None
        self.quantization = quantization
        self.parts: list[PackedWeight | Tensor] = []  # a Tensor is [out, in]
        self.packed = nn.ParameterList([_parameter(torch.empty(0, device="meta"))])  # their memory

    def place(self, weight: Tensor | GroupedWeight | list[WeightPart], device: torch.device) -> None:
        """Pack a weight [out, in], or its parts, on the device. Raises NotFinite."""
        if isinstance(weight, list):
            self.parts = list(_native_parts(weight, device))
        elif self.quantization == "native":
            self.parts = [weight if isinstance(weight, Tensor) else pack_grid(weight, device)]
        elif self.quantization == "int8":
            self.parts = [
                pack_bytes(to_bytes(dequantize(weight) if isinstance(weight, GroupedWeight) else weight), device)
            ]
        else:
            self.parts = [pack_grid(weight if isinstance(weight, GroupedWeight) else quantize(weight, 4), device)]
        tensors = [part.tensors if isinstance(part, PackedWeight) else [part] for part in self.parts]
        self.packed = nn.ParameterList(map(_parameter, itertools.chain(*tensors)))

    def forward(self, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Return [T, out] for x [T, in], in dtype or that of x."""
        output = torch.empty(x.shape[0], self.out_features, dtype=dtype or x.dtype, device=x.device)
        start = 0
        for part in self.parts:
            end = start + (part.num_outputs if isinstance(part, PackedWeight) else part.shape[0])
            bias = None if self.bias is None else self.bias[start:end]
            write = write_packed_product if isinstance(part, PackedWeight) else write_product
            write(x, part, bias, output[:, start:end])  # type: ignore[arg-type]  # each for its own kind
            start = end
        return output


def write_packed_product(x: Tensor, weight: PackedWeight, bias: Tensor | None, output: Tensor) -> None:
    """Write x [T, in] times the transpose of a weight, plus bias [out], to output [T, out], whose rows may be apart."""
    num_rows, num_inputs = x.shape
    layout, numbers, scales, factors = weight
    num_columns = weight.num_outputs
    tile = packed_tile(num_rows, num_columns, x.itemsize, x.device)
    multiply_packed[programs(tile, num_rows, num_columns)](
        x,
        numbers,
        scales,
        scales if factors is None else factors,
        output if bias is None else bias,
        output,
        num_rows,
        num_columns,
        num_inputs,
        x.stride(0),
        numbers.stride(0),
        scales.stride(0),
        0 if factors is None else factors.stride(0),
        output.stride(0),
        ROWS=tile.rows,
        COLUMNS=tile.columns,
        STEP=tile.inputs,
        HAS_WEIGHTS_FIRST=tile.has_weights_first,
        BITS=layout.bits,
        GROUP=layout.group,
        ZERO=layout.zero,
        SCALE_BITS=layout.scale_bits,
        SCALE_ZERO=0 if layout.has_offsets else SIGN,
        HAS_OFFSETS=layout.has_offsets,
        HAS_FACTORS=layout.has_factors,
        IS_WIDE=scales.dtype in (torch.bfloat16, torch.float32),
        HAS_BIAS=bias is not None,
        HAS_TAIL=num_inputs % tile.inputs > 0,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        enable_fp_fusion=False,
    )


def _native_parts(parts: list[WeightPart], device: torch.device) -> Iterator[PackedWeight | Tensor]:
    """Yield the parts on the device; neighbours of one kind of blocks become one."""
    for kind, some in itertools.groupby(parts, lambda part: part.kind if isinstance(part, StoredRows) else None):
        if kind is None:
            yield from (part.to(device) for part in some if isinstance(part, Tensor))
        else:
            yield pack_rows([part for part in some if isinstance(part, StoredRows)], device)


def _parameter(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)
