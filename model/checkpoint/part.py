"""Part: some rows of a tensor in the files of a model, which are outputs of one of its weights."""

from dataclasses import dataclass

from torch import Tensor

from caravan.model.checkpoint.row_order import half_split, rotated_first


@dataclass(frozen=True)
class Part:
    """A tensor of the files that is a weight of the model, or some of its rows."""

    source: str
    shape: tuple[int, ...]  # of these rows
    num_reordered_heads: int = 0  # 0: the rows stay in their order
    first_row: int = 0
    step: int = 1  # between two rows
    added: float = 0.0  # to each value
    rotary_dim: int | None = None  # of half-split heads of which only this part rotates; None: they are interleaved

    @property
    def rows(self) -> slice:
        """The rows of the tensor."""
        return slice(self.first_row, self.first_row + (self.shape[0] - 1) * self.step + 1, self.step)

    def in_order(self, rows: Tensor) -> Tensor:
        """Return these rows in the order of the model."""
        if not self.num_reordered_heads:
            return rows
        if self.rotary_dim is None:
            return half_split(rows, self.num_reordered_heads)
        return rotated_first(rows, self.num_reordered_heads, self.rotary_dim)
