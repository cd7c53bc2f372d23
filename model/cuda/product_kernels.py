"""Matrix products in Triton with fixed tiles: every element is summed over K in one order, for any number of rows.

A program computes ROWS rows of x times COLUMNS rows of the weight. It walks along K in steps of INPUTS and adds each
step's matrix instructions to one sum in float32. ROWS is at least 64, so that one family of matrix instructions
computes all batches of an architecture (mma.sync on sm_80, wgmma on sm_90, tcgen05 on sm_100). There is no split
of K. One binary computes all numbers of rows that share a tile.
"""

from typing import NamedTuple

import triton
import triton.language as tl

INPUTS = 64  # of a step along K


class ProductTile(NamedTuple):
    """The tile of a program and how it is run."""

    rows: int
    columns: int
    num_warps: int
    num_stages: int


def product_tile(num_rows: int, bytes_per_number: int) -> ProductTile:
    """Return the tile for x with this number of rows, in numbers of 2 or 4 bytes.

    Up to 64 rows a product waits for its weights: narrow tiles give every processor some. float32, for tests, has
    one tile.
    """
    if num_rows <= 64 or bytes_per_number == 4:
        return ProductTile(64, 32, 4, 6 if bytes_per_number == 2 else 3)
    return ProductTile(64, 128, 4, 4) if num_rows <= 512 else ProductTile(128, 256, 8, 3)


@triton.jit(do_not_specialize=["num_rows"])
def multiply(
    x,  # [M, K], rows x_stride apart
    weight,  # [N, K]
    bias,  # [N], where HAS_BIAS
    output,  # [M, N]
    num_rows,
    num_columns,
    num_inputs,
    x_stride,
    weight_stride,
    output_stride,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    INPUTS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_TAIL: tl.constexpr,
):
    """Compute x @ weight.T + bias. Grid: ceil(M / ROWS), ceil(N / COLUMNS).

    HAS_TAIL: K is no multiple of INPUTS. Rows and columns beyond the last start again at the first: loads without a
    mask take fewer registers.
    """
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inputs = tl.arange(0, INPUTS)
    x_rows = x + (rows % num_rows).to(tl.int64)[:, None] * x_stride + inputs[None, :]
    weight_rows = weight + (columns % num_columns).to(tl.int64)[:, None] * weight_stride + inputs[None, :]
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(0, num_inputs, INPUTS):
        if HAS_TAIL:
            is_input = (start + inputs < num_inputs)[None, :]
            x_tile = tl.load(x_rows + start, mask=is_input, other=0)
            weights = tl.load(weight_rows + start, mask=is_input, other=0)
        else:
            x_tile = tl.load(x_rows + start)
            weights = tl.load(weight_rows + start)
        total = tl.dot(x_tile, tl.trans(weights), total, input_precision="ieee")
    if HAS_BIAS:
        total += tl.load(bias + columns, mask=columns < num_columns, other=0).to(tl.float32)[None, :]
    place = output + rows.to(tl.int64)[:, None] * output_stride + columns[None, :]
    mask = (rows < num_rows)[:, None] & (columns < num_columns)[None, :]
    tl.store(place, total.to(output.dtype.element_ty), mask=mask)
