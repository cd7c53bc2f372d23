"""Matrices of bytes or of float8 numbers, with scales in a tensor of their own."""

import torch
from torch import Tensor

from caravan.model.checkpoint.stored_matrix import (
    GROUP,
    Blocks,
    QuantizedTensor,
    StoredMatrix,
    unsupported,
    weight_schemes,
)


def scaled_bytes(stored: StoredMatrix) -> QuantizedTensor:
    """Return a matrix of bytes or of float8 numbers with one scale, one for each row, or one for each block.

    For SCB, of bitsandbytes, 127 times the scales are stored.
    """
    num_outputs, num_inputs = stored.shape("weight")
    leaf = next((leaf for leaf in ("SCB", "weight_scale_inv") if stored.has(leaf)), "weight_scale")
    num_steps = 127 if leaf == "SCB" else 1
    if stored.has("weight_zero_point"):
        raise unsupported(stored.config, "in bytes with zero points")
    stated = stored.shapes[f"{stored.stem}.{leaf}"]
    num_scales, columns = (stated[0], 1) if len(stated) == 1 else stated if len(stated) == 2 else (1, 1)
    sizes = _block_size(stored)
    if sizes is not None:
        height, width = sizes  # of the part of the matrix that has one scale
    else:
        height, width = (num_outputs if (num_scales, columns) == (1, 1) else 1), num_inputs
    if (num_scales, columns) != (-(-num_outputs // height), -(-num_inputs // width)):
        raise stored.broken(f"{leaf} has the shape {list(stated)}, which does not fit blocks of {[height, width]}")

    def weight(rows: slice) -> Tensor:
        if leaf == "SCB":
            return stored.load_as(("I8",), "weight", num_outputs, num_inputs)[rows]
        return stored.load("weight", num_outputs, num_inputs)[rows]

    def scales(rows: slice) -> Tensor:
        """Return the scales of some rows, [rows, columns] in float32."""
        places = torch.arange(rows.start, rows.stop) // min(height, num_outputs)
        return stored.load(leaf, *stated).view(num_scales, columns).index_select(0, places).float() / num_steps

    def widen(rows: slice) -> Tensor:
        return weight(rows).float() * scales(rows).repeat_interleave(min(width, num_inputs), 1)[:, :num_inputs]

    def heads(rows: slice) -> Tensor:
        return scales(rows).half().expand(-1, num_inputs // GROUP).contiguous().unsqueeze(-1).view(torch.uint8)

    def values(rows: slice) -> Tensor:
        return weight(rows).view(torch.uint8).view(rows.stop - rows.start, -1, GROUP)

    shape = num_outputs, num_inputs
    fits = stored.types[f"{stored.stem}.weight"] == "I8" and columns == 1 and num_inputs % GROUP == 0
    return QuantizedTensor(
        shape=shape,
        sources=stored.names("weight", leaf, "weight_format", "input_scale", "activation_scale", "input_scale_ub"),
        widen=widen,
        blocks=Blocks(kind="Q8_0", shape=shape, heads=heads, values=values) if fits else None,
    )


def _block_size(stored: StoredMatrix) -> tuple[int, int] | None:
    """Return the rows and columns of a block that has one scale; None if none are stated."""
    sizes = stored.config.items("weight_block_size") or next(
        (scheme["block_structure"] for scheme in weight_schemes(stored.config) if scheme.get("block_structure")), []
    )
    if not sizes:
        return None
    if not isinstance(sizes, list) or len(sizes) != 2 or not all(type(size) is int and size > 0 for size in sizes):
        raise stored.broken(f"the size of its blocks is {ascii(sizes)[:40]}")
    return sizes[0], sizes[1]
