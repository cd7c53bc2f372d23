"""Linear layers on a GPU: with weights in the model's dtype."""

import torch
import torch.nn.functional as F
from torch import Tensor

from caravan.model.cuda.packed_kernels import PackedTile
from caravan.model.cuda.product_kernels import INPUTS, ProductTile, multiply, product_tile
from caravan.model.linear import Linear


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


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None, dtype: torch.dtype | None = None) -> Tensor:
    """Return x [T, in] times the transpose of weight [out, in], plus bias [out], in dtype or that of x.

    The sum over `in` has one order for any number of rows and is rounded once.
    """
    output = torch.empty(x.shape[0], weight.shape[0], dtype=dtype or x.dtype, device=x.device)
    write_product(x, weight, bias, output)
    return output


def write_product(x: Tensor, weight: Tensor, bias: Tensor | None, output: Tensor) -> None:
    """Write the product to output [T, out], whose rows may be apart."""
    num_rows, num_inputs = x.shape
    num_columns = weight.shape[0]
    assert x.stride(1) == weight.stride(1) == output.stride(1) == 1
    tile = product_tile(num_rows, x.itemsize)
    multiply[programs(tile, num_rows, num_columns)](
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


def programs(tile: ProductTile | PackedTile, num_rows: int, num_columns: int) -> tuple[int, int]:
    """Return the numbers of programs: those of a column of tiles, which share weights, run side by side."""
    return -(-num_rows // tile.rows), -(-num_columns // tile.columns)
