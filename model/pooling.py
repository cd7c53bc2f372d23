"""Pooling: one vector for a whole text, from the hidden states of its tokens."""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor  # the scheduler is also simulated in the API process, which has no torch


class Pool(NamedTuple):
    """The sum of the hidden states of a text's tokens so far.

    In float64 and in the order of the text, so that the bits of the sum do not depend on chunks.
    """

    total: NDArray[np.float64]  # [hidden_size]
    num_tokens: int

    def embedding(self) -> list[float]:
        """Return the mean, [hidden_size]; that of a single token is its state."""
        mean: list[float] = (self.total / self.num_tokens).tolist()
        return mean

    @property
    def is_finite(self) -> bool:
        """Whether every number is finite."""
        return bool(np.isfinite(self.total).all())


def pooled(earlier: Pool | None, states: "Tensor") -> Pool:
    """Return a pool with the states [T, hidden_size] added to the earlier ones."""
    rows = states.double().numpy(force=True)
    total, num_tokens = (np.zeros(rows.shape[1]), 0) if earlier is None else earlier
    total = total.copy()
    for row in rows:
        total += row
    return Pool(total, num_tokens + len(rows))
