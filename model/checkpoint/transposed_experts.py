"""Experts that files have as [experts, inputs, outputs], as matrices of all their outputs."""

import re

import torch
from torch import Tensor

from caravan.model.checkpoint.stored_matrix import Load, QuantizedTensor, Shapes

_TRANSPOSED = re.compile(r"model\.layers\.\d+\.mlp\.experts\.(gate_up|down)_proj")


def transposed_experts(shapes: Shapes, load: Load) -> dict[str, QuantizedTensor]:
    """Return the matrices [experts * outputs, inputs] of gpt-oss by the names of their tensors."""
    return {
        name: _matrix(name, shape, load)
        for name, shape in shapes.items()
        if _TRANSPOSED.fullmatch(name) and len(shape) == 3 and 0 not in shape
    }


def _matrix(name: str, shape: tuple[int, ...], load: Load) -> QuantizedTensor:
    num_experts, num_inputs, num_outputs = shape

    def widen(rows: slice) -> Tensor:
        wanted = range(*rows.indices(num_experts * num_outputs))
        pieces, start = [], 0
        while start < len(wanted):  # those of one expert
            expert, first = divmod(wanted[start], num_outputs)
            count = min(len(range(first, num_outputs, wanted.step)), len(wanted) - start)
            columns = slice(first, first + (count - 1) * wanted.step + 1, wanted.step)
            pieces.append(load(name)[expert, :, columns].T.float())
            start += count
        return torch.cat(pieces)

    return QuantizedTensor(shape=(num_experts * num_outputs, num_inputs), sources=(name,), widen=widen)
