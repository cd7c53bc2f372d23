"""Linear layers on a GPU: in the model's dtype, or with weights of 4 bits on a grid."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from caravan.model.cuda.product_kernels import GROUP, INPUTS, ProductTile, multiply, multiply_int4, product_tile
from caravan.model.linear import Linear
from caravan.model.quantization import GroupedWeight


class CudaLinear(Linear):
    """A linear layer with its weight in bfloat16 or float32.

    The bits of a row depend on that row and the weight alone. With is_fast, cuBLAS multiplies instead: it chooses an
    order of sums by the number of rows, so the bits of a row depend on the batch.
    """

    def __init__(self, plain: Linear, *, is_fast: bool) -> None:
        """Replace `plain`, which has no weights yet."""
        super().__init__(plain.in_features, plain.out_features, has_bias=plain.bias is not None)
        self.is_fast = is_fast

    def forward(self, x: Tensor) -> Tensor:
        """Return [T, out] for x [T, in]."""
        return F.linear(x, self.weight, self.bias) if self.is_fast else product(x, self.weight, self.bias)


class Int4Linear(Linear):
    """A linear layer with weights of 4 bits on a grid, scale * q + offset for each 32 inputs.

    A weight is rounded to x's dtype when it is multiplied; sums are float32. The bits of a row depend on that row and
    the weight alone.
    """

    def __init__(self, plain: Linear) -> None:
        """Replace `plain`, which has no weights yet."""
        super().__init__(plain.in_features, plain.out_features, has_bias=plain.bias is not None)
        self.weight = _parameter(torch.empty(0, dtype=torch.uint8, device="meta"))  # [out, ceil(in / 64) * 32]
        self.scales = _parameter(torch.empty(0, dtype=torch.float16, device="meta"))  # [out, ceil(in / 64) * 2]
        self.offsets = _parameter(torch.empty(0, dtype=torch.float16, device="meta"))

    def place(self, weight: GroupedWeight, device: torch.device) -> None:
        """Pack a weight [out, in] of 4 bits and put it on the device."""
        assert weight.bits == 4
        packed = [_parameter(part.to(device)) for part in packed_int4(weight)]
        self.weight, self.scales, self.offsets = packed

    def forward(self, x: Tensor) -> Tensor:
        """Return [T, out] for x [T, in]."""
        num_rows, num_inputs = x.shape
        tile = product_tile(num_rows, x.itemsize)
        output = torch.empty(num_rows, self.out_features, dtype=x.dtype, device=x.device)
        multiply_int4[_grid(tile, num_rows, self.out_features)](
            x,
            self.weight,
            self.scales,
            self.offsets,
            output if self.bias is None else self.bias,
            output,
            num_rows,
            self.out_features,
            num_inputs,
            x.stride(0),
            self.weight.stride(0),
            self.scales.stride(0),
            output.stride(0),
            ROWS=tile.rows,
            COLUMNS=tile.columns,
            GROUP=GROUP,
            HAS_BIAS=self.bias is not None,
            HAS_TAIL=num_inputs % (2 * GROUP) > 0,
            num_warps=tile.num_warps,
            num_stages=tile.num_stages,
            enable_fp_fusion=False,
        )
        return output


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None, dtype: torch.dtype | None = None) -> Tensor:
    """Return x [T, in] times the transpose of weight [out, in], plus bias [out], in dtype or that of x.

    The sum over `in` has one order for any number of rows and is rounded once.
    """
    num_rows, num_inputs = x.shape
    num_columns = weight.shape[0]
    assert x.stride(1) == weight.stride(1) == 1
    tile = product_tile(num_rows, x.itemsize)
    output = torch.empty(num_rows, num_columns, dtype=dtype or x.dtype, device=x.device)
    multiply[_grid(tile, num_rows, num_columns)](
        x,
        weight,
        output if bias is None else bias,
        output,
        num_rows,
        num_columns,
        num_inputs,
        x.stride(0),
        weight.stride(0),
        output.stride(0),
        ROWS=tile.rows,
        COLUMNS=tile.columns,
        INPUTS=INPUTS,
        HAS_BIAS=bias is not None,
        HAS_TAIL=num_inputs % INPUTS > 0,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        enable_fp_fusion=False,
    )
    return output


def _grid(tile: ProductTile, num_rows: int, num_columns: int) -> tuple[int, int]:
    """Return the numbers of programs: those of a column of tiles, which share weights, run side by side."""
    return -(-num_rows // tile.rows), -(-num_columns // tile.columns)


def packed_int4(weight: GroupedWeight) -> tuple[Tensor, Tensor, Tensor]:
    """Return the packed numbers [out, ceil(in / 64) * 32] uint8, scales and offsets [out, ceil(in / 64) * 2] float16.

    Byte j of a block of 32 has the numbers of inputs j, in its low bits, and j + 32 of the block's 64.
    """
    num_outputs, num_inputs = weight.shape
    num_blocks = -(-num_inputs // (2 * GROUP))
    values = F.pad(weight.values, (0, num_blocks * 2 * GROUP - num_inputs)).view(num_outputs, num_blocks, 2, GROUP)
    packed = (values[:, :, 0] | values[:, :, 1] << 4).flatten(1)
    missing = (0, num_blocks * 2 - weight.scales.shape[1])
    return packed.contiguous(), F.pad(weight.scales, missing), F.pad(weight.offsets, missing)


def _parameter(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)
