"""Prompts that are computed in pieces small enough for the streams that are running."""

from caravan.scheduler.config import EngineConfig
from caravan.scheduler.pace import ALONE_SECONDS, LEAST_CHUNK, TOGETHER_SECONDS
from caravan.scheduler.scheduler import Scheduler
from tests.scheduler.requests import make_request
from tests.scheduler.test_scheduler import step

STEP_SECONDS, PREFILL_SECONDS = 0.02, 0.0004
SLOW_PREFILL_SECONDS = 0.003


def paced(target_seconds: float | None, *, is_shared: bool = False) -> Scheduler:
    """Return a scheduler with four streams, after steps of an engine with a known price for tokens."""
    config = EngineConfig(
        num_blocks=1000,
        max_batch_tokens=512,
        max_model_len=5000,
        max_inter_token_seconds=target_seconds,
        is_shared=is_shared,
    )
    scheduler = Scheduler(config)
    for request_id in range(4):
        scheduler.add(make_request(request_id, [request_id] * (50 * request_id + 1), max_tokens=1000))
        play(scheduler)
    for _ in range(10):
        play(scheduler)
    return scheduler


def play(scheduler: Scheduler, prefill_seconds: float = PREFILL_SECONDS) -> tuple[float, dict[int, int]]:
    """Return the seconds that a step takes and what it computed."""
    computed, output = step(scheduler)
    seconds = STEP_SECONDS + prefill_seconds * output.stats.num_prefill_tokens
    scheduler.observe_seconds(seconds)
    return seconds, computed


def test_a_long_prompt_among_streams_comes_in_pieces_that_keep_steps_short() -> None:
    scheduler = paced(0.1)
    scheduler.add(make_request(9, list(range(4000)), max_tokens=5))
    steps = [play(scheduler) for _ in range(30)]
    assert all(computed[request_id] == 1 for _, computed in steps for request_id in range(4))  # all go on
    assert max(seconds for seconds, _ in steps) < 0.11
    pieces = [computed.get(9, 0) for _, computed in steps]
    assert sum(pieces) == 4000 + 4  # tokens of the answer whose keys and values are needed
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


def seconds_of_two_tokens(scheduler: Scheduler, num_steps_before: int) -> float:
    """Return what a short request of another key takes that comes in the middle of one of these steps."""
    for _ in range(num_steps_before):
        seconds, _ = play(scheduler, SLOW_PREFILL_SECONDS)
    scheduler.add(make_request(1000, [7] * 12, max_tokens=2, key="other"))
    while any(sequence.request.request_id == 1000 for sequence in (*scheduler.running, *scheduler.waiting)):
        seconds += play(scheduler, SLOW_PREFILL_SECONDS)[0]
    return seconds


def test_threat_29_prompts_of_one_key_hold_up_two_tokens_of_another_for_less_than_a_second() -> None:
    scheduler = Scheduler(EngineConfig(num_blocks=10_000, max_model_len=5000, max_num_seqs=8, is_shared=True))
    for request_id in range(100):
        scheduler.add(make_request(request_id, [request_id] * 4000, max_tokens=1, key="long"))
    for _ in range(100):  # it learns what a token costs
        play(scheduler, SLOW_PREFILL_SECONDS)
    delays = [seconds_of_two_tokens(scheduler, num_steps) for num_steps in range(1, 30)]
    assert max(delays) < ALONE_SECONDS + 2 * TOGETHER_SECONDS + 0.05


def test_streams_of_one_key_hardly_pause_for_prompts_of_another() -> None:
    scheduler = paced(None)
    scheduler.add(make_request(9, list(range(4000)), max_tokens=5, key="long"))
    for _ in range(30):
        play(scheduler, SLOW_PREFILL_SECONDS)
    steps = [play(scheduler, SLOW_PREFILL_SECONDS) for _ in range(20)]
    assert max(seconds for seconds, _ in steps) < TOGETHER_SECONDS + 0.02
    assert all(computed[request_id] == 1 for _, computed in steps for request_id in range(4))
    assert min(computed[9] for _, computed in steps) > 30


def test_the_first_steps_are_no_longer_though_nobody_knows_yet_what_a_token_costs() -> None:
    scheduler = Scheduler(EngineConfig(num_blocks=1000, max_model_len=15_000, is_shared=True))
    scheduler.add(make_request(0, list(range(14_000)), max_tokens=5))
    assert max(play(scheduler, SLOW_PREFILL_SECONDS)[0] for _ in range(20)) < ALONE_SECONDS + 0.02


def test_after_a_late_step_the_next_ones_compute_less() -> None:
    scheduler = paced(0.1)
    scheduler.add(make_request(9, list(range(4900)), max_tokens=5))
    in_time = max(play(scheduler)[1][9] for _ in range(6))
    play(scheduler, 4 * PREFILL_SECONDS)  # somebody else takes the processors
    _, computed = play(scheduler)
    assert computed[9] < in_time / 2
    assert max(play(scheduler)[1][9] for _ in range(4)) > in_time * 0.6  # it was once


def test_a_step_of_a_shared_engine_is_short_while_one_key_has_work_too() -> None:
    scheduler = Scheduler(EngineConfig(num_blocks=1000, max_model_len=15_000, is_shared=True))
    scheduler.add(make_request(0, list(range(14_000)), max_tokens=5))
    for _ in range(30):
        seconds, computed = play(scheduler, SLOW_PREFILL_SECONDS)
    assert seconds < ALONE_SECONDS + 0.02
    assert computed[0] > 150


def test_long_prompts_leave_a_short_step_to_streams_that_are_younger() -> None:
    scheduler = Scheduler(EngineConfig(num_blocks=1000, max_batch_tokens=16, max_model_len=5000))
    scheduler.add(make_request(0, list(range(4000)), max_tokens=5, key="long"))
    play(scheduler)
    scheduler.add(make_request(1, [1] * 4, max_tokens=50, key="other"))
    computed = [play(scheduler)[1] for _ in range(20)]
    assert all(one[1] >= 1 and one[0] >= 1 for one in computed)
