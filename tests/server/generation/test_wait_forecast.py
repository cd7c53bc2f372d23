"""The predicted wait, compared with a step-by-step simulation of an engine."""

from hypothesis import given
from hypothesis import strategies as st

from caravan.server.generation.wait_forecast import forecast_wait_seconds

STEP_SECONDS, PREFILL_SECONDS = 0.5, 0.25


def forecast(running: list[int], waiting: list[tuple[int, int]], max_running: int) -> float:
    return forecast_wait_seconds(
        running, waiting, max_running=max_running, step_seconds=STEP_SECONDS, prefill_seconds=PREFILL_SECONDS
    )


def played(running: list[int], waiting: list[tuple[int, int]], max_running: int) -> float:
    """Return the same, step by step."""
    running, waiting = [*running], [*waiting]
    seconds = 0.0
    while True:
        while waiting and len(running) < max_running:
            num_prompt_tokens, num_tokens = waiting.pop(0)
            seconds += num_prompt_tokens * PREFILL_SECONDS
            running.append(num_tokens)
        if not waiting and len(running) < max_running:
            return seconds
        seconds += STEP_SECONDS
        running = [left - 1 for left in running if left > 1]


lengths = st.integers(1, 30)


@given(st.lists(lengths, max_size=8), st.lists(st.tuples(lengths, lengths), max_size=12), st.integers(1, 8))
def test_the_forecast_equals_a_simulated_engine(
    running: list[int], waiting: list[tuple[int, int]], max_running: int
) -> None:
    running = running[:max_running]
    assert forecast(running, waiting, max_running) == played(running, waiting, max_running)


def test_with_free_places_the_forecast_is_zero() -> None:
    assert forecast([100, 100], [], 3) == 0


def test_more_running_sequences_than_the_limit_are_waited_for() -> None:
    assert forecast([5, 1, 3], [], 2) == 3 * STEP_SECONDS
