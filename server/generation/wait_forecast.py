"""Predict the wait in the engine's queue by a simulation of the engine."""

from collections.abc import Iterable
from heapq import heapify, heappop, heappush


def forecast_wait_seconds(
    running: Iterable[int],
    waiting: Iterable[tuple[int, int]],
    *,
    max_running: int,
    step_seconds: float,
    prefill_seconds: float,
) -> float:
    """Return the seconds until one more sequence would start.

    `running` has the remaining tokens of each running sequence, `waiting` the prompt tokens and output tokens of each
    sequence that starts earlier. A step generates one token per running sequence; prompts delay all of them.
    """
    ends = [*running]  # in steps from now
    heapify(ends)
    num_steps = 0.0
    seconds = 0.0

    def wait_for_room() -> None:
        nonlocal num_steps, seconds
        while len(ends) >= max_running:
            end = heappop(ends)
            seconds += max(end - num_steps, 0) * step_seconds
            num_steps = max(end, num_steps)

    for num_prompt_tokens, num_tokens in waiting:
        wait_for_room()
        seconds += num_prompt_tokens * prefill_seconds
        heappush(ends, int(num_steps) + num_tokens)
    wait_for_room()
    return seconds
