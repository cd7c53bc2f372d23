"""Matrices of bytes or of float8 numbers, with scales in a tensor of their own."""

import torch
from torch import Tensor

from caravan.model.checkpoint.stored_matrix import GROUP, QuantizedTensor, StoredMatrix, unsupported, weight_schemes


def scaled_bytes(stored: StoredMatrix) -> QuantizedTensor:
    """Return a matrix of bytes or of float8 numbers with one scale, one for each row, or one for each block.

    For SCB, of bitsandbytes, 127 times the scales are stored.
    """
    num_outputs, num_inputs = stored.shape("weight")
    leaf = next((leaf for leaf in ("SCB", "weight_scale_inv") if stored.has(leaf)), "weight_scale")
    num_steps = 127 if leaf == "SCB" else 1
    if stored.has("weight_zero_point"):
        raise unsupported(stored.config, "in bytes with zero points")
    shape = stored.shapes[f"{stored.stem}.{leaf}"]
    rows, columns = (shape[0], 1) if len(shape) == 1 else shape if len(shape) == 2 else (1, 1)
    sizes = _block_size(stored)
    if sizes is not None:
        height, width = sizes  # of the part of the matrix that has one scale
    else:
        height, width = (num_outputs if (rows, columns) == (1, 1) else 1), num_inputs
    if (rows, columns) != (-(-num_outputs // height), -(-num_inputs // width)):
        raise stored.broken(f"{leaf} has the shape {list(shape)}, which does not fit blocks of {[height, width]}")

    def read() -> tuple[Tensor, Tensor]:
        stated = stored.load(leaf, *shape).float().view(rows, columns) / num_steps
        scales = stated.repeat_interleave(min(height, num_outputs), 0)[:num_outputs]
        if leaf == "SCB":
            return stored.load_as(("I8",), "weight", num_outputs, num_inputs), scales
        return stored.load("weight", num_outputs, num_inputs), scales

    def widen() -> Tensor:
        weight, scales = read()
        return weight.float() * scales.repeat_interleave(min(width, num_inputs), 1)[:, :num_inputs]

    def blocks() -> Tensor:
        """Return blocks of Q8_0."""
        weight, scales = read()
        numbers = scales.half().expand(-1, num_inputs // GROUP).contiguous().unsqueeze(-1).view(torch.uint8)
        return torch.cat((numbers, weight.view(torch.uint8).view(num_outputs, -1, GROUP)), dim=-1).flatten(1)

    fits = stored.types[f"{stored.stem}.weight"] == "I8" and columns == 1 and num_inputs % GROUP == 0
    return QuantizedTensor(
        shape=(num_outputs, num_inputs),
        sources=stored.names("weight", leaf, "weight_format", "input_scale", "activation_scale", "input_scale_ub"),
        widen=widen,
        kind="Q8_0" if fits else None,
        blocks=blocks if fits else None,
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
