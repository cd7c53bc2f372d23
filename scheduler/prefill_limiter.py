"""PrefillLimiter: how many prompt tokens a step may compute, so that running streams do not stall.

Stall-free batching as in Sarathi-Serve (Agrawal et al., 2024, arXiv:2403.02310), section 4.2, but with a budget from
measured steps instead of a profile made beforehand.
"""

from collections.abc import Iterable

from caravan.scheduler.sequence import Sequence
from caravan.scheduler.step_cost import StepCost
from caravan.scheduler.step_counters import StepRecord

TOGETHER_SECONDS = 0.15  # target of a step while several API keys have work, if none is set
ALONE_SECONDS = 0.5  # target while one of several keys has work: a request of another key waits no longer
STRETCH = 2  # times these targets at most, where decoding alone takes half of them: chunks would be too small
LATE = 1.25  # a step that takes this many times its target is late
LEAST_CHUNK = 16  # prompt tokens in each step, whatever they cost, so that prompts make progress
LEAST_SHARED_CHUNK = 32  # the same where the operator has set no target
LEARNING = 0.1  # weight of the newest step in the mean of steps without prompts


class PrefillLimiter:
    """A target for the duration of a step, and the cost of the steps so far."""

    def __init__(self, target_seconds: float | None, *, is_shared: bool = False) -> None:
        """Without a target there is no limit, unless several API keys share the engine."""
        self._target_seconds = target_seconds
        self._is_shared = is_shared
        self._cost = StepCost()
        self._decode_seconds = 0.0  # of a step without prompts
        self.planned_seconds = 0.0  # of the next step, if it is limited; else 0
        self._cap = 2 * LEAST_CHUNK  # prompt tokens at most, whatever the estimated cost

    def observe(self, record: StepRecord, seconds: float) -> None:
        """Learn from one step."""
        counters = record.counters
        if counters.num_prefill_tokens:
            self._bound(counters.num_prefill_tokens, seconds, record.planned_seconds)
        elif counters.num_decode_tokens:
            self._decode_seconds += LEARNING * (seconds - self._decode_seconds) if self._decode_seconds else seconds
        if counters.num_prefill_tokens or counters.num_decode_tokens:
            self._cost.observe(counters.num_prefill_tokens, seconds)

    def max_prefill_tokens(self, running: Iterable[Sequence], num_keys: int, budget: int) -> int:
        """Return how many of `budget` tokens may be prefill while num_keys keys have running or waiting sequences."""
        least = LEAST_CHUNK
        if self._target_seconds is not None and (num_keys > 1 or any(one.num_output_tokens for one in running)):
            self.planned_seconds = self._target_seconds
        elif num_keys > 1 or self._is_shared:
            seconds = TOGETHER_SECONDS if num_keys > 1 else max(ALONE_SECONDS, self._target_seconds or 0.0)
            self.planned_seconds = min(max(seconds, 2 * self._decode_seconds), STRETCH * seconds)
            least = LEAST_SHARED_CHUNK
        else:
            self.planned_seconds = 0.0
            return budget
        num_tokens = min(self._cost.max_prefill_tokens(self.planned_seconds), self._cap)
        return min(max(num_tokens, least), budget)

    def _bound(self, num_tokens: int, seconds: float, planned_seconds: float) -> None:
        """Cap the next steps at twice what a step has computed in time, and after a late step at less than it computed.

        The estimated cost comes from many steps and reacts slowly when other processes take the processors.
        """
        if planned_seconds and seconds > LATE * planned_seconds:
            self._cap = int(num_tokens * planned_seconds / seconds)
        else:
            self._cap = max(self._cap, 2 * num_tokens)
