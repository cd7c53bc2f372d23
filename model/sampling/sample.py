"""Sample: what the sampler says about one row of logits."""

from typing import NamedTuple


class Sample(NamedTuple):
    """The token drawn for one row, with the log-probabilities that were asked for."""

    token_id: int
    logprob: float | None = None  # under the model itself: no temperature, no penalty
    top_token_ids: tuple[int, ...] = ()  # best first
    top_logprobs: tuple[float, ...] = ()


LATE = Sample(-1)  # no token: the row could not be judged in time and is computed again
