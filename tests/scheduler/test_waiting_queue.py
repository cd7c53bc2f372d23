"""WaitingQueue: the order of joining, by priority and fairly between keys."""

from typing import cast

from caravan.scheduler.config import EngineConfig
from caravan.scheduler.grammar import Matcher
from caravan.scheduler.scheduler import Scheduler
from caravan.scheduler.sequence import Sequence
from caravan.scheduler.step_result import StepResult
from caravan.scheduler.waiting_queue import WaitingQueue
from tests.scheduler.requests import make_request
from tests.support.scheduler_steps import run_step


def sequence(request_id: int, key: str = "", priority: int = 0, num_tokens: int = 10, urgency: int = 0) -> Sequence:
    request = make_request(request_id, list(range(num_tokens)), key=key, priority=priority, urgency=urgency)
    return Sequence.of(request)


def order(queue: WaitingQueue) -> list[int]:
    return [waiting.request.request_id for waiting in queue]


def test_one_key_is_first_come_first_served() -> None:
    queue = WaitingQueue()
    for request_id in range(5):
        queue.append(sequence(request_id))
    assert order(queue) == [0, 1, 2, 3, 4]
    assert len(queue) == 5


def test_priority_orders_the_requests_of_one_key() -> None:
    queue = WaitingQueue()
    for request_id, priority in ((1, 5), (2, 0), (3, -1), (4, 0)):
        queue.append(sequence(request_id, "a", priority))
    assert order(queue) == [3, 2, 4, 1]


def test_threat_30_priority_does_not_move_a_key_before_another() -> None:
    queue = WaitingQueue()
    for request_id in range(5):
        queue.append(sequence(request_id, "pushy", -1000))
    for request_id in range(10, 12):
        queue.append(sequence(request_id, "modest", 1000))
    assert order(queue) == [10, 0, 11, 1, 2, 3, 4]


def test_threat_30_a_key_that_sends_its_best_priority_without_end_delays_another_by_one_turn() -> None:
    scheduler = Scheduler(
        EngineConfig(num_blocks=512, block_size=8, max_batch_tokens=64, max_num_seqs=4, max_model_len=128)
    )
    for request_id in range(40):
        scheduler.add(make_request(request_id, list(range(20)), key="pushy", priority=-1000, max_tokens=4))
    for _ in range(5):
        run_step(scheduler)
    scheduler.add(make_request(1000, list(range(20)), key="modest", max_tokens=2))
    for step in range(12):
        scheduler.add(make_request(100 + step, list(range(20)), key="pushy", priority=-1000, max_tokens=4))
        run_step(scheduler)
    assert not scheduler.waiting.has(1000)


class SlowMatcher:
    """A matcher whose grammar is being compiled until a test sets is_ready."""

    is_ready = False
    problem = ""

    def close(self) -> None:
        """Nothing to drop."""


def test_threat_27_requests_whose_grammars_are_being_compiled_delay_no_other() -> None:
    config = EngineConfig(num_blocks=512, block_size=8, max_batch_tokens=64, max_num_seqs=4, max_model_len=128)
    scheduler = Scheduler(config)
    scheduler.add(make_request(1, [1, 2], key="modest", max_tokens=2))
    matchers = [SlowMatcher() for _ in range(50)]
    for request_id, matcher in enumerate(matchers, start=100):
        scheduler.add(make_request(request_id, [1, 2], key="slow"), cast(Matcher, matcher))
    scheduler.add(make_request(2, [3, 4], key="modest", max_tokens=2))
    for _ in range(3):
        run_step(scheduler)
    assert not scheduler.running
    assert len(scheduler.waiting) == 50
    scheduler.abort(100)
    matchers[1].is_ready, matchers[1].problem = True, "too complex"
    output = scheduler.commit(scheduler.schedule(), StepResult([]))
    assert [(one.request_id, one.error_kind) for one in output.outputs] == [(101, "grammar")]
    assert output.stats.num_waiting == 48


def test_an_urgent_request_is_before_all_keys_and_keys_take_turns_among_urgent_ones() -> None:
    queue = WaitingQueue()
    queue.append(sequence(1, "a"))
    queue.append(sequence(2, "b", urgency=-1))
    queue.append(sequence(3, "b", urgency=-1))
    queue.append(sequence(4, "c", urgency=-1))
    queue.append(sequence(5, "c", urgency=-5))
    assert order(queue) == [5, 2, 4, 3, 1]


def test_keys_take_turns_by_the_tokens_they_were_served() -> None:
    queue = WaitingQueue()
    for request_id in range(4):
        queue.append(sequence(request_id, "long", num_tokens=30))
    for request_id in range(10, 16):
        queue.append(sequence(request_id, "short", num_tokens=10))
    assert order(queue) == [0, 10, 11, 12, 1, 13, 14, 15, 2, 3]


def test_tokens_of_answers_count_too() -> None:
    queue = WaitingQueue()
    queue.append(sequence(1, "a"))
    queue.append(sequence(2, "b"))
    queue.count_output(sequence(9, "a"), 100)
    assert order(queue) == [2, 1]


def test_a_key_that_was_away_has_saved_no_turns() -> None:
    queue = WaitingQueue()
    queue.append(sequence(1, "busy"))
    queue.count_output(sequence(1, "busy"), 1000)
    for request_id in range(2, 6):
        queue.append(sequence(request_id, "away"))
    assert order(queue)[:3] in ([2, 1, 3], [1, 2, 3])


def test_a_key_that_arrives_at_an_empty_queue_starts_at_the_count_of_the_running_keys() -> None:
    queue = WaitingQueue()
    for request_id in range(50):  # one after the other: the queue is empty in between
        queue.append(sequence(request_id, "old"))
        joined = queue.remove(request_id)
        assert joined is not None
        queue.count_prompt(joined)
        queue.count_output(joined, 100)
    for request_id in range(100, 110):
        queue.append(sequence(request_id, "new"))
    queue.append(sequence(50, "old"))
    assert order(queue).index(50) <= 1


def test_a_preempted_sequence_is_the_first_of_its_line() -> None:
    queue = WaitingQueue()
    queue.append(sequence(1))
    queue.put_back(sequence(2))
    queue.put_back(sequence(3))
    queue.append(sequence(4, priority=-5))
    assert order(queue) == [4, 3, 2, 1]


def test_a_preempted_sequence_does_not_go_before_a_key_that_was_served_less() -> None:
    queue = WaitingQueue()
    served = sequence(1, "served")
    queue.append(served)
    queue.remove(1)
    queue.count_prompt(served)
    queue.append(sequence(2, "new"))
    queue.count_output(served, 100)
    queue.put_back(served)
    assert order(queue) == [2, 1]


def test_a_removed_request_is_gone_and_an_unknown_one_is_not_there() -> None:
    queue = WaitingQueue()
    queue.append(sequence(1, "a"))
    queue.put_back(sequence(2))
    assert queue.remove(1) is not None
    assert queue.remove(2) is not None
    assert queue.remove(1) is None
    assert len(queue) == 0
    assert order(queue) == []


def test_a_single_request_starts_within_two_steps_of_a_free_slot_beside_200_of_another_key() -> None:
    scheduler = Scheduler(
        EngineConfig(num_blocks=512, block_size=8, max_batch_tokens=64, max_num_seqs=4, max_model_len=128)
    )
    for request_id in range(200):
        scheduler.add(make_request(request_id, list(range(20)), key="heavy", max_tokens=12))
    for _ in range(5):
        run_step(scheduler)
    scheduler.add(make_request(1000, list(range(20)), key="light", max_tokens=12))
    steps_with_a_free_slot = 0
    while not any(running.request.request_id == 1000 for running in scheduler.running):
        steps_with_a_free_slot += len(scheduler.running) < 4
        run_step(scheduler)
        assert steps_with_a_free_slot <= 2
    assert len(scheduler.waiting) > 150
