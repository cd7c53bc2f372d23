"""What a rank does with its outputs: gathers those of all ranks, or nothing if there is one rank (model/split.py)."""

from collections.abc import Callable

from torch import Tensor

Gather = Callable[[Tensor], Tensor]  # [T, outputs of this rank] -> [T, outputs of all ranks]


def not_split(outputs: Tensor) -> Tensor:
    """Return the outputs as they are: one rank computes all of them."""
    return outputs
