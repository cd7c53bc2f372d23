"""Sample: the sampler's result for one row of logits."""

from typing import NamedTuple


class Sample(NamedTuple):
    """The token of one row, with the log-probabilities that its request asks for."""

    token_id: int
    logprob: float | None = None  # under the model itself: no temperature, no penalty
    top_token_ids: tuple[int, ...] = ()  # best first
    top_logprobs: tuple[float, ...] = ()


LATE = Sample(-1)  # no token: the mask of the row was late, and a later step computes it again
