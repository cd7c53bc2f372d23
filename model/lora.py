"""LoRA adapters beside a model: each row of a step can have one of those in memory, or none.

LoRA (arXiv:2106.09685), section 4.1: y = W x + scale * B (A x). All rows are multiplied with W together, as without
adapters; then each adapter is multiplied with its own rows. A row's bits do not depend on the other rows.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, Protocol, get_args

from torch import Tensor, nn

from caravan.model.linear import Linear, row_invariant_linear

NO_ADAPTER = -1  # the slot of a row without one
LinearName = Literal["qkv", "output", "gate_up", "down"]
LINEARS: tuple[LinearName, ...] = get_args(LinearName)  # those of a layer, in the order of model/cpu/adapters.h


@dataclass(frozen=True, kw_only=True)
class AdapterPart:
    """What an adapter adds to some outputs of a linear layer."""

    layer: int
    linear: LinearName
    first: int  # of the outputs
    scale: float
    a: Tensor  # [rank, in] float32
    b: Tensor  # [out, rank] float32


class AdapterSlots(Protocol):
    """The adapters of a model that are in memory, each in a slot."""

    def prepare(self, parts: list[AdapterPart]) -> Callable[[int], None]:
        """Return a function that puts an adapter into an empty slot, at once; other threads may prepare one."""

    def remove(self, slot: int) -> None:
        """Make a slot empty."""


class PlainAdapters:
    """Adapters in plain PyTorch, in float32."""

    def __init__(self) -> None:
        self._parts: dict[tuple[int, int, LinearName], list[AdapterPart]] = {}
        self._rows: dict[int, Tensor] = {}  # of the step, by slot

    def prepare(self, parts: list[AdapterPart]) -> Callable[[int], None]:
        """Return a function that puts an adapter into an empty slot."""
        return partial(self._place, parts)

    def _place(self, parts: list[AdapterPart], slot: int) -> None:
        for part in parts:
            self._parts.setdefault((slot, part.layer, part.linear), []).append(part)

    def remove(self, slot: int) -> None:
        """Make a slot empty."""
        self._parts = {key: parts for key, parts in self._parts.items() if key[0] != slot}

    def begin(self, row_slots: Tensor | None) -> None:
        """Set the slots of the rows of the next step, [T], or None if no row has an adapter."""
        slots = [] if row_slots is None else sorted(set(row_slots.tolist()))
        self._rows = {slot: (row_slots == slot).nonzero().flatten() for slot in slots if slot != NO_ADAPTER}

    def add_to(self, y: Tensor, x: Tensor, layer: int, linear: LinearName) -> Tensor:
        """Return the outputs y [T, out] of a linear layer for x [T, in], changed in the rows that have an adapter."""
        for slot, rows in self._rows.items():
            for part in self._parts.get((slot, layer, linear), ()):
                hidden = row_invariant_linear(x[rows].float(), part.a)  # [rows, rank]
                change = row_invariant_linear(hidden * part.scale, part.b)  # [rows, out]
                outputs = slice(part.first, part.first + len(part.b))
                y[rows, outputs] = (y[rows, outputs].float() + change).to(y.dtype)
        return y


class AdaptedLinear(nn.Module):
    """A linear layer to which adapters are added."""

    def __init__(self, linear: Linear, adapters: PlainAdapters, layer: int, name: LinearName) -> None:
        super().__init__()
        self.linear = linear
        self.adapters, self.layer, self.name = adapters, layer, name

    def forward(self, x: Tensor) -> Tensor:
        """Return [T, out_features] for x [T, in_features]."""
        return self.adapters.add_to(self.linear(x), x, self.layer, self.name)
