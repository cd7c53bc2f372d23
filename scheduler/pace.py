"""Pace: how much of prompts a step computes, so that streams and requests of others do not stand still for long.

The idea of stall-free batching in Sarathi-Serve (Agrawal et al., 2024, arXiv:2403.02310), section 4.2, with the budget
from measured steps instead of a profile made before.
"""

from collections.abc import Iterable

from caravan.scheduler.sequence import Sequence
from caravan.scheduler.step_cost import StepCost
from caravan.scheduler.step_counters import StepCounters

TOGETHER_SECONDS = 0.2  # a step, if no target is set, while several API keys have work
ALONE_SECONDS = 0.5  # a step while one of several keys has work: another that comes waits for no longer
LATE = 1.25  # a step that takes so many times its target is late
LEAST_CHUNK = 16  # tokens of prompts in each step, whatever it costs: prompts have to get on


class Pace:
    """A target for the seconds of a step, and what steps have cost so far."""

    def __init__(self, target_seconds: float | None, *, is_shared: bool = False) -> None:
        """Without a target nothing is held back, unless several API keys share the engine."""
        self._target_seconds = target_seconds
        self._is_shared = is_shared
        self._cost = StepCost()
        self._planned_seconds = 0.0  # of the next step, if it is held back
        self._cap = 2 * LEAST_CHUNK  # tokens of prompts, whatever the line through the latest steps says

    def observe(self, counters: StepCounters, seconds: float) -> None:
        """Learn from one step."""
        if counters.num_prefill_tokens or counters.num_decode_tokens:
            self._cost.observe(counters.num_prefill_tokens, seconds)
            self._bound(counters.num_prefill_tokens, seconds)

    def max_prefill_tokens(self, running: Iterable[Sequence], num_keys: int, budget: int) -> int:
        """Return how many of `budget` tokens may be prefill, while so many keys have sequences, running or waiting."""
        seconds = self._target_seconds
        if num_keys > 1:
            seconds = TOGETHER_SECONDS if seconds is None else seconds
        elif seconds is None:
            seconds = ALONE_SECONDS if self._is_shared else None
        elif not any(sequence.num_output_tokens for sequence in running):
            seconds = None
        if seconds is None:
            self._planned_seconds = 0.0
            return budget
        self._planned_seconds = seconds
        return min(max(min(self._cost.max_prefill_tokens(seconds), self._cap), LEAST_CHUNK), budget)

    def _bound(self, num_tokens: int, seconds: float) -> None:
        """Let no step compute more than twice what one has computed in time, and after one that was late less than it.

        The line is that of many steps, and slow to see that others take the processors.
        """
        if self._planned_seconds and seconds > LATE * self._planned_seconds:
            self._cap = int(num_tokens * self._planned_seconds / seconds)
        else:
            self._cap = max(self._cap, 2 * num_tokens)
