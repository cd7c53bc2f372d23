"""Admission: which requests are admitted, and the errors of the others."""

import math

import pytest

from caravan.scheduler.config import EngineConfig
from caravan.scheduler.messages import EventKind, SequenceEvent, StepOutput, StepStats
from caravan.server.generation.admission import Admission, Reservation
from caravan.server.generation.context import RequestContext
from caravan.server.generation.errors import DeadlineExceeded, QueueFull
from caravan.server.generation.request_limits import QueueLimits
from caravan.server.http.errors import as_api_error
from caravan.server.observe.metrics import Metrics

STEP_SECONDS = 0.1


def an_admission(*, max_num_seqs: int = 2, **limits: float) -> Admission:
    """Return one whose engine takes 0.1 s for a step and next to nothing for a prompt."""
    config = EngineConfig(num_blocks=10_000, max_num_seqs=max_num_seqs, max_model_len=512)
    admission = Admission(config, Metrics("fake", config), QueueLimits(**limits))  # type: ignore[arg-type]
    for num_prefill_tokens in (0, 500) * 20:
        seconds = STEP_SECONDS + num_prefill_tokens * 1e-6
        stats = StepStats(num_decode_tokens=2, num_prefill_tokens=num_prefill_tokens, step_seconds=seconds)
        admission.on_step(StepOutput(outputs=[], stats=stats))
    return admission


def admit(
    admission: Admission, *lengths: tuple[int, int], context: RequestContext = RequestContext()
) -> list[Reservation]:
    return admission.admit(lengths or [(10, 20)], context)


def start(admission: Admission, *reservations: Reservation) -> None:
    for reservation in reservations:
        admission.count_tokens(reservation, 1, 0.0)


def rejections(admission: Admission, reason: str) -> float:
    labels = {"model_name": "fake", "reason": reason}
    return admission.metrics.registry.get_sample_value("caravan_admission_rejections_total", labels) or 0.0


def test_requests_over_the_limit_are_rejected_until_one_ends() -> None:
    admission = an_admission(max_requests=3)
    reservations = [reservation for _ in range(5) for reservation in admit(admission)]  # two will run, three wait
    with pytest.raises(QueueFull, match="queue has 3 requests; the limit is 3|queue has 5 requests") as refused:
        admit(admission)
    answer = as_api_error(refused.value)
    assert (answer.status, answer.kind, answer.code) == (
        429,
        "rate_limit_error",
        "server_overloaded",
    )
    assert 1 <= (answer.retry_after or 0) <= 120
    assert rejections(admission, "queue_full") == 1
    start(admission, *reservations[:2])
    with pytest.raises(QueueFull):
        admit(admission)
    admission.leave(reservations[0], is_complete=True)
    admit(admission)


def test_lines_of_batches_that_wait_leave_the_queue_to_requests() -> None:
    admission = an_admission(max_requests=3)
    line = RequestContext(urgency=1)
    start(admission, *admit(admission, *[(10, 20)] * 2))
    for _ in range(3):
        admit(admission, context=line)
    with pytest.raises(QueueFull):
        admit(admission, context=line)
    for _ in range(3):
        admit(admission)
    with pytest.raises(QueueFull):
        admit(admission)


def test_running_lines_of_batches_take_no_places_of_requests() -> None:
    admission = an_admission(max_requests=0)
    start(admission, *admit(admission, *[(10, 200)] * 2, context=RequestContext(urgency=1)))  # the batch is full
    admit(admission)
    with pytest.raises(QueueFull):
        admit(admission, context=RequestContext(urgency=1))
    admit(admission)
    with pytest.raises(QueueFull, match="queue has 2 requests; the limit is 0"):
        admit(admission)


def test_a_request_waits_one_step_for_each_line_that_makes_way() -> None:
    admission = an_admission(max_num_seqs=2)
    line = RequestContext(urgency=1)
    lines = admit(admission, *[(10, 200)] * 4, context=line)
    for number, reservation in enumerate(lines):
        admission.submit(reservation, number)
    start(admission, *lines)
    admission.on_step(events("join", 0, 1))  # the others have been preempted
    waits = [admit(admission)[0].predicted_wait_seconds for _ in range(3)]
    assert waits == pytest.approx([STEP_SECONDS, 2 * STEP_SECONDS, 21 * STEP_SECONDS], rel=0.05)
    assert admit(admission, context=line)[0].predicted_wait_seconds > 190 * STEP_SECONDS


def test_lines_that_have_made_way_delay_no_request() -> None:
    admission = an_admission(max_num_seqs=2)
    lines = admit(admission, *[(10, 200)] * 4, context=RequestContext(urgency=1))
    for number, reservation in enumerate(lines):
        admission.submit(reservation, number)
    start(admission, *lines)
    admission.on_step(events("join", 0, 1))
    admission.on_step(events("preempt", 0, 1))
    assert admit(admission)[0].predicted_wait_seconds == 0


def test_a_request_of_many_sequences_is_admitted_as_a_whole_or_rejected() -> None:
    admission = an_admission(max_requests=3)
    running = admit(admission, *[(10, 20)] * 2)
    start(admission, *running)
    admit(admission)
    with pytest.raises(QueueFull):
        admit(admission, *[(10, 20)] * 3)
    assert len(admit(admission, *[(10, 20)] * 2)) == 2


def test_a_request_larger_than_the_limits_is_admitted_to_an_empty_queue() -> None:
    admission = an_admission(max_requests=3, max_tokens=100)
    assert len(admit(admission, *[(10, 20)] * 20)) == 20
    with pytest.raises(QueueFull):
        admit(admission)


def test_queued_tokens_are_limited_but_an_idle_engine_accepts_any_request() -> None:
    admission = an_admission(max_tokens=100)
    running = admit(admission, (200, 200), (200, 200))
    start(admission, *running)
    admit(admission, (20, 40))
    with pytest.raises(QueueFull, match="queue has 60 tokens; 60 more would exceed the limit of 100"):
        admit(admission, (20, 40))
    assert rejections(admission, "queue_tokens") == 1


def test_threat_29_a_key_that_fills_the_queue_leaves_a_fair_share_to_others() -> None:
    admission = an_admission(max_requests=8, max_tokens=10_000)
    start(admission, *admit(admission, (1, 11), (1, 11)))
    admit(admission, *[(10, 20)] * 50, context=RequestContext("many"))
    for num_waiting in range(4):
        assert len(admit(admission, context=RequestContext("few"))) == 1, num_waiting
    for name in ("many", "few"):  # each has its share or more
        with pytest.raises(QueueFull, match="queue has 54 requests; the limit is 8"):
            admit(admission, context=RequestContext(name))


def test_threat_29_a_key_that_fills_the_queue_with_tokens_leaves_a_fair_share_to_others() -> None:
    admission = an_admission(max_tokens=1000)
    start(admission, *admit(admission, (1, 11), (1, 11)))
    admit(admission, (400, 500), context=RequestContext("many"))
    admit(admission, (100, 100), context=RequestContext("few"))
    admit(admission, (100, 200), context=RequestContext("few"))
    with pytest.raises(QueueFull, match="queue has 1400 tokens; 2 more would exceed the limit of 1000"):
        admit(admission, (1, 1), context=RequestContext("few"))


def test_a_request_larger_than_the_limits_is_admitted_when_its_key_has_nothing_queued() -> None:
    admission = an_admission(max_requests=3)
    for name in ("one", "other"):
        assert len(admit(admission, *[(10, 20)] * 20, context=RequestContext(name))) == 20
        with pytest.raises(QueueFull, match="requests; the limit is 3"):
            admit(admission, context=RequestContext(name))


def test_a_request_whose_predicted_wait_exceeds_the_limit_is_rejected_with_a_retry_time() -> None:
    admission = an_admission(max_wait_seconds=1.5)
    start(admission, *admit(admission, (1, 81), (1, 41)))
    with pytest.raises(QueueFull, match=r"predicted wait is 4\.0 s") as refused:
        admit(admission)
    assert math.ceil(refused.value.retry_after_seconds) == 3  # 2.5 s too many
    assert rejections(admission, "wait") == 1


def test_a_request_whose_predicted_end_is_after_its_deadline_is_rejected() -> None:
    admission = an_admission()
    start(admission, *admit(admission, (1, 31), (1, 31)))
    in_time = RequestContext(timeout_seconds=6.0)
    assert admit(admission, (10, 20), context=in_time)[0].predicted_wait_seconds == pytest.approx(3.0, abs=0.1)
    with pytest.raises(DeadlineExceeded, match=r"response time is 5\.0 s; the deadline is in 4\.5 s") as refused:
        admit(admission, (10, 20), context=RequestContext(timeout_seconds=4.5))
    assert math.ceil(refused.value.retry_after_seconds) == 1
    assert rejections(admission, "deadline") == 1


def test_the_forecast_counts_one_request_of_another_key_not_all() -> None:
    admission = an_admission()
    start(admission, *admit(admission, (1, 11), (1, 11)))
    for _ in range(50):
        admit(admission, (10, 20), context=RequestContext("many"))
    (few,) = admit(admission, (10, 20), context=RequestContext("few"))
    (urgent,) = admit(admission, (10, 20), context=RequestContext("many", priority=-1))
    (last,) = admit(admission, (10, 20), context=RequestContext("many"))
    assert urgent.predicted_wait_seconds <= few.predicted_wait_seconds < 1.2
    assert last.predicted_wait_seconds > 45  # 51 of 2 s, two at a time


def test_the_forecast_counts_no_more_prompt_tokens_of_another_key_than_of_its_own() -> None:
    admission = an_admission(max_num_seqs=64)
    for _ in range(40):
        admission.on_step(StepOutput(outputs=[], stats=StepStats(num_prefill_tokens=100, step_seconds=10.1)))
        admission.on_step(StepOutput(outputs=[], stats=StepStats(num_decode_tokens=2, step_seconds=STEP_SECONDS)))
    admit(admission, (400, 1), context=RequestContext("long"))
    admit(admission, (400, 1), context=RequestContext("long"))
    (short,) = admit(admission, (10, 2), context=RequestContext("short"))
    (own,) = admit(admission, (10, 2), context=RequestContext("long"))
    assert short.predicted_wait_seconds < own.predicted_wait_seconds / 10


def test_threat_30_priority_changes_the_forecast_of_its_own_key_only() -> None:
    admission = an_admission()
    running = admit(admission, (1, 11), (1, 11))
    start(admission, *running)
    for reservation in running:
        reservation.is_in_batch = True
    for _ in range(20):
        admit(admission, (10, 20), context=RequestContext("pushy", priority=-1000))
    (modest,) = admit(admission, (10, 20), context=RequestContext("modest", priority=1000))
    (late,) = admit(admission, (10, 20), context=RequestContext("pushy", priority=0))
    (early,) = admit(admission, (10, 20), context=RequestContext("pushy", priority=-1001))
    (urgent,) = admit(admission, (10, 20), context=RequestContext("urgent", priority=-1, urgency=-1))
    assert [reservation.num_before for reservation in (modest, late, early, urgent)] == [1, 21, 1, 0]
    assert urgent.predicted_wait_seconds <= early.predicted_wait_seconds <= modest.predicted_wait_seconds
    assert late.predicted_wait_seconds > 10


def test_sequences_that_end_early_shorten_the_forecast() -> None:
    admission = an_admission()
    for _ in range(60):
        (reservation,) = admit(admission, (10, 100))
        admission.count_tokens(reservation, 25, 0.0)
        admission.leave(reservation, is_complete=True)
    start(admission, *admit(admission, (1, 100), (1, 100)))
    assert admit(admission)[0].predicted_wait_seconds == pytest.approx(2.4, rel=0.1)


def test_the_forecast_error_is_observed_and_a_reservation_is_removed_once() -> None:
    admission = an_admission()
    start(admission, *admit(admission, (1, 21), (1, 21)))
    (reservation,) = admit(admission)
    admission.count_tokens(reservation, 1, reservation.predicted_wait_seconds - 0.25)

    def num_up_to(bound: str) -> float:
        labels = {"model_name": "fake", "le": bound}
        name = "caravan_admission_wait_error_seconds_bucket"
        return admission.metrics.registry.get_sample_value(name, labels) or 0.0

    assert num_up_to("0.5") - num_up_to("0.0") == 1  # a quarter of a second too much
    for _ in range(2):
        admission.leave(reservation, is_complete=False)


def test_the_forecast_accounts_for_a_pool_smaller_than_the_batch() -> None:
    config = EngineConfig(num_blocks=40, max_num_seqs=64, max_model_len=512)  # 640 tokens
    admission = Admission(config, Metrics("fake", config))
    for _ in range(20):
        admission.on_step(StepOutput(outputs=[], stats=StepStats(num_decode_tokens=2, step_seconds=STEP_SECONDS)))
    start(admission, *admit(admission, (200, 101), (200, 101)))
    assert admit(admission, (200, 101))[0].predicted_wait_seconds == pytest.approx(10.0)


def events(kind: EventKind, *engine_numbers: int) -> StepOutput:
    return StepOutput(outputs=[], stats=StepStats(), events=[SequenceEvent(number, kind) for number in engine_numbers])


def test_a_sequence_in_the_batch_is_not_in_the_queue() -> None:
    admission = Admission(EngineConfig(num_blocks=200), Metrics("fake", EngineConfig(num_blocks=200)))
    for number in (1, 2):
        (reservation,) = admit(admission)
        assert reservation.num_before == number - 1
        admission.submit(reservation, number)
    admission.on_step(events("join", 1))
    assert admit(admission)[0].num_before == 1  # of the two
    admission.on_step(events("preempt", 1))
    assert admit(admission)[0].num_before == 3
    admission.on_step(events("join", 1))
    admission.on_replay(1, 1.0)
    (last,) = admit(admission)
    assert last.num_before == 4
    admission.submit(last, 3)
    admission.leave(last, is_complete=True)
    assert set(admission._submitted) == {1, 2}


def test_num_before_counts_queued_sequences_only() -> None:
    admission = Admission(EngineConfig(num_blocks=200), Metrics("fake", EngineConfig(num_blocks=200)))
    numbers = iter(range(100))

    def admit_all(key: str, num: int) -> list[int]:
        reservations = [admit(admission, context=RequestContext(key))[0] for _ in range(num)]
        for number, reservation in zip(numbers, reservations, strict=False):
            admission.submit(reservation, number)
        return [reservation.num_before for reservation in reservations]

    admit_all("a", 6)
    admission.on_step(events("join", *range(6)))
    assert admit_all("b", 6) == [0, 1, 2, 3, 4, 5]
    assert admit_all("a", 2) == [1, 3]  # keys take turns, whatever they have in the batch


def test_queued_tokens_are_those_of_sequences_without_a_first_token_with_their_predicted_outputs() -> None:
    admission = Admission(EngineConfig(num_blocks=200), Metrics("fake", EngineConfig(num_blocks=200)))
    assert admission.num_queued_tokens() == 0
    first, second = admit(admission, (100, 50), (30, 50))
    assert admission.num_queued_tokens() == 230
    admission.count_tokens(first, 1, 0.1)
    assert admission.num_queued_tokens() == 80
    admission.leave(first, is_complete=True)  # with 1 of its 50 tokens
    assert admission.num_queued_tokens() == 75  # 45 of 50 are predicted now
    admission.leave(second, is_complete=False)
    assert admission.num_queued_tokens() == 0


def test_the_time_until_the_engine_is_loaded_is_part_of_the_wait() -> None:
    admission = an_admission(max_requests=1)
    admission.start_seconds = lambda: 20.0
    (first,) = admit(admission)
    assert first.predicted_wait_seconds == pytest.approx(20, abs=0.1)
    with pytest.raises(DeadlineExceeded) as refused:
        admit(admission, context=RequestContext(timeout_seconds=10))
    assert refused.value.retry_after_seconds == pytest.approx(12, abs=1)
    admit(admission)
    admit(admission)
    with pytest.raises(QueueFull) as full:
        admit(admission)
    assert full.value.retry_after_seconds >= 20, "the queue gets no shorter before"


def test_a_load_that_takes_longer_than_the_maximum_wait_does_not_make_a_model_unreachable() -> None:
    admission = an_admission(max_num_seqs=1, max_wait_seconds=10)
    admission.start_seconds = lambda: 12.0
    admit(admission, (10, 200))
    with pytest.raises(QueueFull, match=r"The predicted wait is 2\d\.\d s; the limit is 10 s") as late:
        admit(admission)
    assert late.value.retry_after_seconds >= 20


def test_the_drain_takes_the_steps_of_the_longest_sequence() -> None:
    admission = an_admission()
    assert admission.drain_seconds() == 0
    reservations = admit(admission, (10, 20), (10, 50))
    assert admission.drain_seconds() == pytest.approx(50 * STEP_SECONDS, rel=0.1)
    start(admission, *reservations)
    admission.count_tokens(reservations[1], 29, 0.0)
    assert admission.drain_seconds() == pytest.approx(20 * STEP_SECONDS, rel=0.1)
