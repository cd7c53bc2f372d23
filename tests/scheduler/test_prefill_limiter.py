"""Prompts are computed in chunks small enough for the running streams."""

import pytest

from caravan.model.sampling.sample import Sample
from caravan.scheduler.config import EngineConfig
from caravan.scheduler.prefill_limiter import ALONE_SECONDS, LEAST_CHUNK, TOGETHER_SECONDS
from caravan.scheduler.scheduler import Scheduler
from caravan.scheduler.step_result import StepResult
from tests.scheduler.requests import FakeClock, make_request

STEP_SECONDS, PREFILL_SECONDS = 0.02, 0.0004
SLOW_PREFILL_SECONDS = 0.003


def make_scheduler(config: EngineConfig) -> Scheduler:
    return Scheduler(config, FakeClock())


def running_streams(target_seconds: float | None, *, is_shared: bool = False) -> Scheduler:
    """Return a scheduler with four streams, after steps of an engine with a known cost of tokens."""
    config = EngineConfig(
        num_blocks=1000,
        max_batch_tokens=512,
        max_model_len=5000,
        max_inter_token_seconds=target_seconds,
        is_shared=is_shared,
    )
    scheduler = make_scheduler(config)
    for request_id in range(4):
        scheduler.add(make_request(request_id, [request_id] * (50 * request_id + 1), max_tokens=1000))
        play(scheduler)
    for _ in range(10):
        play(scheduler)
    return scheduler


def play(scheduler: Scheduler, prefill_seconds: float = PREFILL_SECONDS) -> tuple[float, dict[int, int]]:
    """Return the seconds that a step takes and what it computed."""
    assert isinstance(scheduler.clock, FakeClock)
    plan = scheduler.schedule()
    computed = {s.sequence.request.request_id: s.num_tokens for s in plan}
    seconds = STEP_SECONDS + prefill_seconds * scheduler.stats().num_prefill_tokens
    scheduler.clock.seconds += seconds
    output = scheduler.commit(plan, StepResult([Sample(1) for s in plan if s.wants_logits]))
    assert output.stats.step_seconds == pytest.approx(seconds)
    return seconds, computed


def test_a_long_prompt_among_streams_is_computed_in_chunks_that_keep_steps_short() -> None:
    scheduler = running_streams(0.1)
    scheduler.add(make_request(9, list(range(4000)), max_tokens=5))
    steps = [play(scheduler) for _ in range(30)]
    assert all(computed[request_id] == 1 for _, computed in steps for request_id in range(4))
    assert max(seconds for seconds, _ in steps) < 0.11
    chunks = [computed.get(9, 0) for _, computed in steps]
    assert sum(chunks) == 4000 + 4  # tokens of the answer whose keys and values are needed
    assert max(chunks) > 150  # chunks are not smaller than needed: 200 fit


def test_without_a_target_prompts_use_the_whole_token_budget() -> None:
    scheduler = running_streams(None)
    scheduler.add(make_request(9, list(range(4000)), max_tokens=5))
    assert play(scheduler)[1][9] == 508


def test_prompts_make_progress_even_if_the_target_cannot_be_met() -> None:
    scheduler = running_streams(0.001)
    scheduler.add(make_request(9, list(range(100)), max_tokens=5))
    assert [play(scheduler)[1][3] for _ in range(3)] == [LEAST_CHUNK] * 3  # the last of the four still has its prompt


def test_prompts_are_not_limited_while_no_sequence_decodes() -> None:
    scheduler = make_scheduler(EngineConfig(num_blocks=1000, max_model_len=5000, max_inter_token_seconds=0.001))
    scheduler.add(make_request(0, list(range(1000)), max_tokens=5))
    assert play(scheduler)[1][0] == 512
    assert play(scheduler)[1][0] == 488


def test_two_prompts_share_one_limit() -> None:
    scheduler = running_streams(0.1)
    for request_id in (8, 9):
        scheduler.add(make_request(request_id, [request_id] * 300, max_tokens=5))
    seconds, computed = play(scheduler)
    assert seconds < 0.11
    assert 150 < computed[8] + computed.get(9, 0) < 225


def seconds_of_two_tokens(scheduler: Scheduler, num_steps_before: int) -> float:
    """Return how long a short request of another key takes that arrives during one of these steps."""
    for _ in range(num_steps_before):
        seconds, _ = play(scheduler, SLOW_PREFILL_SECONDS)
    scheduler.add(make_request(1000, [7] * 12, max_tokens=2, key="other"))
    while any(sequence.request.request_id == 1000 for sequence in (*scheduler.running, *scheduler.waiting)):
        seconds += play(scheduler, SLOW_PREFILL_SECONDS)[0]
    return seconds


def test_threat_29_prompts_of_one_key_delay_two_tokens_of_another_by_less_than_a_second() -> None:
    scheduler = make_scheduler(EngineConfig(num_blocks=10_000, max_model_len=5000, max_num_seqs=8, is_shared=True))
    for request_id in range(100):
        scheduler.add(make_request(request_id, [request_id] * 4000, max_tokens=1, key="long"))
    for _ in range(100):  # the limiter learns the cost of a token
        play(scheduler, SLOW_PREFILL_SECONDS)
    delays = [seconds_of_two_tokens(scheduler, num_steps) for num_steps in range(1, 30)]
    assert max(delays) < ALONE_SECONDS + 2 * TOGETHER_SECONDS + 0.05


def test_prompts_of_another_key_delay_a_step_of_streams_by_the_target_at_most() -> None:
    scheduler = running_streams(None)
    scheduler.add(make_request(9, list(range(4000)), max_tokens=5, key="long"))
    for _ in range(30):
        play(scheduler, SLOW_PREFILL_SECONDS)
    steps = [play(scheduler, SLOW_PREFILL_SECONDS) for _ in range(20)]
    assert max(seconds for seconds, _ in steps) < TOGETHER_SECONDS + 0.02
    assert all(computed[request_id] == 1 for _, computed in steps for request_id in range(4))
    assert min(computed[9] for _, computed in steps) > 30


def test_the_first_steps_keep_the_target_before_the_cost_of_a_token_is_known() -> None:
    scheduler = make_scheduler(EngineConfig(num_blocks=1000, max_model_len=15_000, is_shared=True))
    scheduler.add(make_request(0, list(range(14_000)), max_tokens=5))
    assert max(play(scheduler, SLOW_PREFILL_SECONDS)[0] for _ in range(20)) < ALONE_SECONDS + 0.02


def test_after_a_late_step_the_next_steps_compute_less() -> None:
    scheduler = running_streams(0.1)
    scheduler.add(make_request(9, list(range(4900)), max_tokens=5))
    in_time = max(play(scheduler)[1][9] for _ in range(6))
    play(scheduler, 4 * PREFILL_SECONDS)  # another process takes the processors
    _, computed = play(scheduler)
    assert computed[9] < in_time / 2
    assert max(play(scheduler)[1][9] for _ in range(4)) > in_time * 0.6  # it was once


def test_steps_of_a_shared_engine_keep_the_target_while_one_key_has_work() -> None:
    scheduler = make_scheduler(EngineConfig(num_blocks=1000, max_model_len=15_000, is_shared=True))
    scheduler.add(make_request(0, list(range(14_000)), max_tokens=5))
    for _ in range(30):
        seconds, computed = play(scheduler, SLOW_PREFILL_SECONDS)
    assert seconds < ALONE_SECONDS + 0.02
    assert computed[0] > 150


def test_a_long_prompt_leaves_tokens_of_each_step_to_a_younger_stream() -> None:
    scheduler = make_scheduler(EngineConfig(num_blocks=1000, max_batch_tokens=16, max_model_len=5000))
    scheduler.add(make_request(0, list(range(4000)), max_tokens=5, key="long"))
    play(scheduler)
    scheduler.add(make_request(1, [1] * 4, max_tokens=50, key="other"))
    computed = [play(scheduler)[1] for _ in range(20)]
    assert all(one[1] >= 1 and one[0] >= 1 for one in computed)
