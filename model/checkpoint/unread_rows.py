"""UnreadRows: a matrix of the files that is read some rows at a time, when a model asks for them."""

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field

import torch
from torch import Tensor

from caravan.model.quantization import GroupedWeight


@dataclass(frozen=True)
class UnreadRows:
    """A matrix [out, in] that is never in memory as a whole. It can be read until the next weight is asked for."""

    shape: torch.Size
    read: Callable[[slice], Tensor | GroupedWeight]  # rows from a start to a stop, in float32 or on the files' grid
    executor: Executor = field(repr=False)  # its threads read ahead
    num_ahead: int  # pieces

    def pieces(self, ranges: Iterable[slice]) -> Iterator[tuple[slice, Tensor | GroupedWeight]]:
        """Yield ranges of rows, in their order, each with the rows; raises what reading them raises."""
        rest = iter(ranges)
        ahead: deque[tuple[slice, Future[Tensor | GroupedWeight]]] = deque()
        while True:
            for rows in itertools.islice(rest, 1 + self.num_ahead - len(ahead)):
                ahead.append((rows, self.executor.submit(self.read, rows)))
            if not ahead:
                return
            rows, piece = ahead.popleft()
            yield rows, piece.result()
