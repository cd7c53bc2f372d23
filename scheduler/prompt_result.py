"""What a step computed of a prompt."""

from collections.abc import Sequence
from typing import NamedTuple

from caravan.model.pooling import Pool
from caravan.model.sampling.sample import Sample


class PromptResult(NamedTuple):
    """What one step computed of one prompt."""

    logprobs: Sequence[Sample] = ()  # of the tokens after the scored positions
    pool: Pool | None = None
    token_logprobs: Sequence[float] = ()  # of the request's logprob_token_ids, after the whole prompt

    @property
    def is_finite(self) -> bool:
        """Whether every number is finite; a log-probability may be minus infinity."""
        is_sound = all(sample.logprob is not None and sample.logprob <= 0 for sample in self.logprobs)
        is_sound &= all(logprob <= 0 for logprob in self.token_logprobs)
        return is_sound and (self.pool is None or self.pool.is_finite)
