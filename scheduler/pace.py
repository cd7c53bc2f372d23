"""Pace: how much of prompts a step computes, so that streams that are running do not stand still for long.

The idea of stall-free batching in Sarathi-Serve (Agrawal et al., 2024, arXiv:2403.02310), section 4.2, with the budget
from measured steps instead of a profile made before.
"""

from collections.abc import Iterable

from scheduler.sequence import Sequence
from scheduler.step_cost import StepCost
from scheduler.step_counters import StepCounters

LEAST_CHUNK = 16  # tokens of prompts in each step, whatever it costs: prompts have to get on


class Pace:
    """A target for the seconds of a step, and what steps have cost so far."""

    def __init__(self, target_seconds: float | None) -> None:
        """Without a target nothing is held back."""
        self._target_seconds = target_seconds
        self._cost = StepCost()

    def observe(self, counters: StepCounters, seconds: float) -> None:
        """Learn from one step."""
        if counters.num_prefill_tokens or counters.num_decode_tokens:
            self._cost.observe(counters.num_prefill_tokens, seconds)

    def max_prefill_tokens(self, running: Iterable[Sequence], budget: int) -> int:
        """Return how many of `budget` tokens may be other than the next one of a running sequence."""
        if self._target_seconds is None or not any(sequence.num_output_tokens for sequence in running):
            return budget
        return min(max(self._cost.max_prefill_tokens(self._target_seconds), LEAST_CHUNK), budget)
