"""Pace: how much of prompts a step computes, so that streams and requests of others do not stand still for long.

The idea of stall-free batching in Sarathi-Serve (Agrawal et al., 2024, arXiv:2403.02310), section 4.2, with the budget
from measured steps instead of a profile made before.
"""

from collections.abc import Iterable

from caravan.scheduler.sequence import Sequence
from caravan.scheduler.step_cost import StepCost
from caravan.scheduler.step_counters import StepCounters

TOGETHER_SECONDS = 0.15  # a step, if no target is set, while several API keys have work
ALONE_SECONDS = 0.5  # a step while one of several keys has work: another that comes waits for no longer
STRETCH = 2  # times these a step may take where decoding alone takes half of that: pieces would be too small
LATE = 1.25  # a step that takes so many times its target is late
LEAST_CHUNK = 16  # tokens of prompts in each step, whatever it costs: prompts have to get on
LEAST_SHARED_CHUNK = 32  # the same where the target is not the operator's
LEARNING = 0.1  # the weight of the newest step in the mean of those without prompts


class Pace:
    """A target for the seconds of a step, and what steps have cost so far."""

    def __init__(self, target_seconds: float | None, *, is_shared: bool = False) -> None:
        """Without a target nothing is held back, unless several API keys share the engine."""
        self._target_seconds = target_seconds
        self._is_shared = is_shared
        self._cost = StepCost()
        self._decode_seconds = 0.0  # of a step without prompts
        self._planned_seconds = 0.0  # of the next step, if it is held back
        self._cap = 2 * LEAST_CHUNK  # tokens of prompts, whatever the line through the latest steps says

    def observe(self, counters: StepCounters, seconds: float) -> None:
        """Learn from one step."""
        if counters.num_prefill_tokens:
            self._bound(counters.num_prefill_tokens, seconds)
        elif counters.num_decode_tokens:
            self._decode_seconds += LEARNING * (seconds - self._decode_seconds) if self._decode_seconds else seconds
        if counters.num_prefill_tokens or counters.num_decode_tokens:
            self._cost.observe(counters.num_prefill_tokens, seconds)

    def max_prefill_tokens(self, running: Iterable[Sequence], num_keys: int, budget: int) -> int:
        """Return how many of `budget` tokens may be prefill, while so many keys have sequences, running or waiting."""
        least = LEAST_CHUNK
        if self._target_seconds is not None and (num_keys > 1 or any(one.num_output_tokens for one in running)):
            self._planned_seconds = self._target_seconds
        elif num_keys > 1 or self._is_shared:
            seconds = TOGETHER_SECONDS if num_keys > 1 else max(ALONE_SECONDS, self._target_seconds or 0.0)
            self._planned_seconds = min(max(seconds, 2 * self._decode_seconds), STRETCH * seconds)
            least = LEAST_SHARED_CHUNK
        else:
            self._planned_seconds = 0.0
            return budget
        num_tokens = min(self._cost.max_prefill_tokens(self._planned_seconds), self._cap)
        return min(max(num_tokens, least), budget)

    def _bound(self, num_tokens: int, seconds: float) -> None:
        """Let no step compute more than twice what one has computed in time, and after one that was late less than it.

        The line is that of many steps, and slow to see that others take the processors.
        """
        if self._planned_seconds and seconds > LATE * self._planned_seconds:
            self._cap = int(num_tokens * self._planned_seconds / seconds)
        else:
            self._cap = max(self._cap, 2 * num_tokens)
