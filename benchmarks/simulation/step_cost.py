"""StepCost: how long a step takes, from what its plan computes.

Vidur (Agrawal et al., MLSys 2024, arXiv:2405.05465) learns the time of each operator; here a step is one linear model.
"""

import itertools
import math
import statistics
from collections.abc import Sequence as Seq
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from caravan.scheduler.sequence import ScheduledSequence

NUM_REWEIGHTINGS = 5


class StepLoad(NamedTuple):
    """What a step computes."""

    prefill_tokens: int = 0
    decode_rows: int = 0
    kv_tokens: int = 0  # positions that the decode rows attend to, over all rows
    prefill_context: float = 0.0  # pairs of a prefill token and a position that it attends to

    @classmethod
    def of(cls, plan: Seq[ScheduledSequence]) -> "StepLoad":
        """Return the load of a plan that is not committed yet."""
        prefill_tokens = decode_rows = kv_tokens = 0
        prefill_context = 0.0
        for scheduled in plan:
            sequence, num_tokens = scheduled.sequence, scheduled.num_tokens
            num_computed = sequence.num_computed_tokens
            if num_tokens == 1 and num_computed >= sequence.num_prompt_tokens:
                decode_rows += 1
                kv_tokens += num_computed + 1
            else:
                prefill_tokens += num_tokens
                prefill_context += num_tokens * (num_computed + (num_tokens + 1) / 2)
        return cls(prefill_tokens, decode_rows, kv_tokens, prefill_context)


class MeasuredStep(NamedTuple):
    """A step of a real engine."""

    load: StepLoad
    seconds: float


class StepCost(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Seconds of a step, as a sum. No part is negative."""

    step_seconds: float  # of every step
    prefill_token_seconds: float
    decode_row_seconds: float
    kv_token_seconds: float  # of a position that a decode row attends to
    prefill_context_seconds: float  # of a position that a prefill token attends to

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} is {value}; it must be a number that is not negative.")
        if not sum(getattr(self, name) for name in self.__struct_fields__):
            raise ValueError("All parts of the cost of a step are 0; a step must take time.")

    def seconds(self, load: StepLoad) -> float:
        """Return how long a step with this load takes."""
        return (
            self.step_seconds
            + self.prefill_token_seconds * load.prefill_tokens
            + self.decode_row_seconds * load.decode_rows
            + self.kv_token_seconds * load.kv_tokens
            + self.prefill_context_seconds * load.prefill_context
        )


def fit(steps: Seq[MeasuredStep]) -> StepCost:
    """Return the cost that fits measured steps best. Raises ValueError if there are too few.

    Non-negative least squares, each square divided by the predicted seconds. Long steps vary more than short ones, so
    they count less; and with these weights the sum of all steps is predicted exactly, unlike with equal weights of
    relative errors. The weights come from the fit before (iteratively reweighted least squares).
    """
    if len(steps) < 2 * len(StepCost.__struct_fields__):
        raise ValueError(f"{len(steps)} steps are too few to fit a cost. Run more requests.")
    loads = np.array([(1.0, *step.load) for step in steps])  # [S, 5]
    seconds = np.array([step.seconds for step in steps])  # [S]
    if not (np.isfinite(seconds).all() and (seconds > 0).all()):
        raise ValueError("A step has no duration. Measure with a clock that moves.")
    scales = np.maximum(loads.max(axis=0), 1e-12)  # else columns of 1 and of 1e6 would be solved together
    weights = np.ones_like(seconds)
    parts = np.zeros(loads.shape[1])
    for _ in range(NUM_REWEIGHTINGS):
        parts = _non_negative(loads / scales * weights[:, None], seconds * weights)
        weights = 1 / np.sqrt(np.maximum(loads / scales @ parts, seconds.min() / 2))
    return StepCost(**dict(zip(StepCost.__struct_fields__, map(float, parts / scales), strict=True)))


def relative_errors(cost: StepCost, steps: Seq[MeasuredStep]) -> list[float]:
    """Return (predicted - measured) / measured of each step."""
    return [cost.seconds(step.load) / step.seconds - 1 for step in steps]


def median_error(cost: StepCost, steps: Seq[MeasuredStep]) -> float:
    """Return the median of the sizes of the relative errors."""
    return statistics.median(map(abs, relative_errors(cost, steps)))


def _non_negative(columns: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the non-negative x with the least |columns x - target|.

    Its positive entries solve the plain problem of their own columns. With 5 columns, all 31 sets of them can be tried.
    """
    best, least = np.zeros(columns.shape[1]), float(target @ target)
    for size in range(1, columns.shape[1] + 1):
        for chosen in itertools.combinations(range(columns.shape[1]), size):
            solution = np.linalg.lstsq(columns[:, chosen], target, rcond=None)[0]
            residual = columns[:, chosen] @ solution - target
            if (solution >= 0).all() and residual @ residual < least:
                best, least = np.zeros(columns.shape[1]), float(residual @ residual)
                best[list(chosen)] = solution
    return best
