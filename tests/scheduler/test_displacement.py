"""A key without a running sequence joins a batch or pool that another key has filled."""

from typing import Any

import pytest

from caravan.scheduler.config import EngineConfig
from caravan.scheduler.scheduler import Scheduler
from caravan.scheduler.sequence import Sequence
from tests.scheduler.requests import make_request
from tests.support.scheduler_steps import run_step

FIRST_OF_OTHERS = 1000


def filled(num_running: int, **limits: int) -> Scheduler:
    """Return a scheduler whose batch is full of one key's long answers, with more of them waiting."""
    defaults: dict[str, Any] = {"num_blocks": 400, "block_size": 8, "max_num_seqs": 4, "max_model_len": 800}
    scheduler = Scheduler(EngineConfig(**defaults | limits))
    for request_id in range(20):
        scheduler.add(make_request(request_id, list(range(20)), key="many", max_tokens=700))
    for _ in range(10):
        run_step(scheduler)
    assert len(scheduler.running) == num_running
    return scheduler


def running_keys(scheduler: Scheduler) -> list[str]:
    return sorted(sequence.request.key for sequence in scheduler.running)


def num_steps_of_two_tokens(scheduler: Scheduler, request_id: int, num_tokens: int = 12, urgency: int = 0) -> int:
    scheduler.add(make_request(request_id, list(range(50, 50 + num_tokens)), key="few", max_tokens=2, urgency=urgency))
    for num_steps in range(500):
        if not scheduler.waiting.has(request_id) and request_id not in {
            sequence.request.request_id for sequence in scheduler.running
        }:
            return num_steps
        run_step(scheduler)
    return 500


def test_another_key_joins_a_full_batch() -> None:
    scheduler = filled(4)
    for request_id in range(FIRST_OF_OTHERS, FIRST_OF_OTHERS + 5):
        assert num_steps_of_two_tokens(scheduler, request_id) <= 3
    scheduler.pool.check()


def test_another_key_joins_a_full_pool() -> None:
    scheduler = filled(16, num_blocks=100, max_num_seqs=16)
    for _ in range(300):
        run_step(scheduler)
    assert scheduler.pool.num_free < 30
    assert num_steps_of_two_tokens(scheduler, FIRST_OF_OTHERS, num_tokens=300) < 20
    scheduler.pool.check()


def test_the_youngest_sequence_is_displaced_and_is_the_next_of_its_key() -> None:
    scheduler = filled(4)
    youngest = scheduler.running[-1]
    scheduler.add(make_request(FIRST_OF_OTHERS, [1, 2, 3], key="few", max_tokens=100))
    run_step(scheduler)
    assert running_keys(scheduler) == ["few", "many", "many", "many"]
    waiting: list[Sequence] = [*scheduler.waiting]
    assert waiting[0] is youngest
    assert youngest.num_output_tokens > 0, "it continues after its output so far"


def test_a_key_with_a_running_sequence_displaces_none() -> None:
    scheduler = filled(4)
    for number in range(3):
        scheduler.add(make_request(FIRST_OF_OTHERS + number, [1, 2, number], key="few", max_tokens=300))
    for _ in range(30):
        run_step(scheduler)
        assert running_keys(scheduler) == ["few", "many", "many", "many"]


def test_no_key_loses_its_only_sequence() -> None:
    scheduler = filled(1, max_num_seqs=1)
    assert num_steps_of_two_tokens(scheduler, FIRST_OF_OTHERS) > 3


@pytest.mark.parametrize(("urgency", "max_steps"), [(0, 500), (-3, 3)])
def test_a_less_urgent_request_displaces_none(urgency: int, max_steps: int) -> None:
    config = EngineConfig(num_blocks=400, block_size=8, max_num_seqs=4, max_model_len=800)
    scheduler = Scheduler(config)
    for request_id in range(4):
        scheduler.add(make_request(request_id, list(range(20)), key="many", max_tokens=700, urgency=-2))
    for _ in range(10):
        run_step(scheduler)
    num_steps = num_steps_of_two_tokens(scheduler, FIRST_OF_OTHERS, urgency=urgency)
    assert (num_steps == 500) if max_steps == 500 else (num_steps <= max_steps)


@pytest.mark.parametrize("key", ["many", "few"])
def test_lines_of_batches_make_way_for_a_request_one_by_one(key: str) -> None:
    scheduler = Scheduler(EngineConfig(num_blocks=400, block_size=8, max_num_seqs=2, max_model_len=800))
    for request_id in range(2):
        scheduler.add(make_request(request_id, list(range(20)), key="many", max_tokens=700, urgency=1))
    for _ in range(10):
        run_step(scheduler)
    youngest = scheduler.running[-1]
    for number in range(2):
        scheduler.add(make_request(FIRST_OF_OTHERS + number, [1, 2, number], key=key, max_tokens=50))
    run_step(scheduler)
    assert youngest not in scheduler.running
    run_step(scheduler)
    assert all(sequence.request.urgency == 0 for sequence in scheduler.running)
    assert len(scheduler.running) == 2
    scheduler.add(make_request(FIRST_OF_OTHERS + 2, [1, 2, 9], key="third", max_tokens=50, urgency=1))
    run_step(scheduler)
    assert all(sequence.request.urgency == 0 for sequence in scheduler.running), "a line displaces no request"
    scheduler.pool.check()
