"""Prompts that are computed in pieces small enough for the streams that are running."""

from scheduler.config import EngineConfig
from scheduler.pace import LEAST_CHUNK
from scheduler.scheduler import Scheduler
from tests.scheduler.requests import make_request
from tests.scheduler.test_scheduler import step

STEP_SECONDS, PREFILL_SECONDS = 0.02, 0.0004


def paced(target_seconds: float | None) -> Scheduler:
    """Return a scheduler with four streams, after steps of an engine with a known price for tokens."""
    config = EngineConfig(
        num_blocks=1000, max_batch_tokens=512, max_model_len=5000, max_inter_token_seconds=target_seconds
    )
    scheduler = Scheduler(config)
    for request_id in range(4):
        scheduler.add(make_request(request_id, [request_id] * (50 * request_id + 1), max_tokens=1000))
        play(scheduler)
    for _ in range(10):
        play(scheduler)
    return scheduler


def play(scheduler: Scheduler) -> tuple[float, dict[int, int]]:
    """Return the seconds that a step takes and what it computed."""
    computed, output = step(scheduler)
    seconds = STEP_SECONDS + PREFILL_SECONDS * output.stats.num_prefill_tokens
    scheduler.observe_seconds(seconds)
    return seconds, computed


def test_a_long_prompt_among_streams_comes_in_pieces_that_keep_steps_short() -> None:
    scheduler = paced(0.1)
    scheduler.add(make_request(9, list(range(4000)), max_tokens=5))
    steps = [play(scheduler) for _ in range(30)]
    assert all(computed[request_id] == 1 for _, computed in steps for request_id in range(4))  # all go on
    assert max(seconds for seconds, _ in steps) < 0.11
    pieces = [computed.get(9, 0) for _, computed in steps]
    assert sum(pieces) == 4000 + sum(1 for piece in pieces if piece == 1)
    assert max(pieces) > 150  # not in smaller pieces than need be: 200 fit


def test_without_a_target_prompts_take_all_the_room_there_is() -> None:
    scheduler = paced(None)
    scheduler.add(make_request(9, list(range(4000)), max_tokens=5))
    assert play(scheduler)[1][9] == 508


def test_a_target_that_cannot_be_met_lets_prompts_get_on() -> None:
    scheduler = paced(0.001)
    scheduler.add(make_request(9, list(range(100)), max_tokens=5))
    assert [play(scheduler)[1][3] for _ in range(3)] == [LEAST_CHUNK] * 3  # the last of the four has its prompt still


def test_nothing_is_held_back_while_nobody_decodes() -> None:
    scheduler = Scheduler(EngineConfig(num_blocks=1000, max_model_len=5000, max_inter_token_seconds=0.001))
    scheduler.add(make_request(0, list(range(1000)), max_tokens=5))
    assert play(scheduler)[1][0] == 512
    assert play(scheduler)[1][0] == 488


def test_two_prompts_share_one_pace() -> None:
    scheduler = paced(0.1)
    for request_id in (8, 9):
        scheduler.add(make_request(request_id, [request_id] * 300, max_tokens=5))
    seconds, computed = play(scheduler)
    assert seconds < 0.11
    assert 150 < computed[8] + computed.get(9, 0) < 225
