"""Request records, compared with the scheduler's events."""

import time
from typing import Any

import pytest

from caravan.scheduler.engine import Engine
from caravan.scheduler.messages import EventKind, SequenceEvent, SequenceOutput, StepOutput, StepStats, WaitReason
from caravan.server.observe.explanation import ChoiceSteps
from caravan.server.observe.request_history import RequestHistory
from caravan.server.observe.request_record import MAX_EVENTS, RequestRecord
from caravan.server.observe.tracing import _phases
from tests.scheduler.requests import make_request
from tests.support.engine_kinds import random_prompt
from tests.support.tiny_llama import run_to_end, tiny_engine, tiny_llama


def begin(history: RequestHistory, *numbers: int, name: str = "cmpl-1", key: str = "") -> RequestRecord:
    record = RequestRecord(name, f"exchange of {name}", key, time.monotonic())
    for number in numbers:
        history.queue(record, number, 0)
    history.begin(record)
    return record


def events(record: RequestRecord) -> list[str]:
    return [event["event"] for event in record.explanation().timeline]


# 12 blocks of 8 for four sequences of up to 60 tokens, two at once, 24 tokens a step
SMALL: dict[str, Any] = {
    "num_blocks": 12,
    "block_size": 8,
    "max_num_seqs": 2,
    "max_batch_tokens": 24,
    "max_model_len": 96,
}
WORDS = {"wait": "waits", "join": "joined", "chunk": "computed", "preempt": "preempted", "replay": "engine replaced"}


def check_events(record: RequestRecord, log: list[SequenceEvent | None]) -> None:
    """Compare a record with the scheduler's own events, None for a new engine."""
    recorded = [one for one in record.explanation().timeline if one["event"] in WORDS.values()]
    assert [one["event"] for one in recorded] == [WORDS[event.kind if event else "replay"] for event in log]
    for one, event in zip(recorded, log, strict=True):
        if event is None:
            continue
        match event.kind:
            case "wait":
                assert one["reason"] == event.reason
            case "join":
                assert one["cached_tokens"] == event.num_tokens
            case "chunk":
                assert (one["tokens"], one["computed_tokens"]) == (event.num_tokens, event.num_computed_tokens)
            case "preempt":
                assert one["lost_tokens"] == event.num_tokens


def test_a_record_has_waiting_chunks_preemption_and_replay() -> None:
    history = RequestHistory()
    prompts = {number: random_prompt(number, 30) for number in range(4)}
    records = {number: begin(history, number, name=f"cmpl-{number}") for number in prompts}
    log: dict[int, list[SequenceEvent | None]] = {number: [] for number in prompts}
    tokens: dict[int, list[int]] = {number: [] for number in prompts}
    ended: set[int] = set()

    def start() -> Engine:
        engine = tiny_engine(tiny_llama(), **SMALL)
        for number in prompts.keys() - ended:
            engine.add(make_request(number, prompts[number], output=tokens[number], max_tokens=25))
        return engine

    def step(engine: Engine) -> None:
        output = engine.step()
        history.on_step(output)
        for event in output.events:
            log[event.request_id].append(event)
        for one in output.outputs:
            tokens[one.request_id] += one.token_ids
            if one.finish_reason is not None:
                ended.add(one.request_id)

    def has_seen_all(number: int) -> bool:
        kinds = [event.kind for event in log[number] if event]
        return {"wait", "join", "chunk", "preempt"} <= set(kinds) and kinds[-1] != "preempt" and number not in ended

    engine = start()
    while not any(map(has_seen_all, prompts)):
        step(engine)
    victim = next(filter(has_seen_all, prompts))
    before = len(tokens[victim])
    history.on_replay(1, 0.5)
    for number in prompts.keys() - ended:
        log[number].append(None)
    engine = start()  # the other one was killed
    while engine.scheduler.has_work:
        step(engine)
    for number, record in records.items():
        check_events(record, log[number])
    (replaced,) = (event for event in records[victim].explanation().timeline if event["event"] == "engine replaced")
    assert (replaced["down_ms"], replaced["tokens"]) == (500, before)
    assert 0 < before < 25
    undisturbed = [make_request(number, prompt, max_tokens=25) for number, prompt in prompts.items()]
    transcripts = run_to_end(tiny_engine(tiny_llama(), **SMALL), undisturbed)
    assert tokens == {number: transcript.token_ids for number, transcript in transcripts.items()}


def test_a_record_has_the_scheduler_events_and_batch_sizes() -> None:
    engine = tiny_engine(tiny_llama(), **SMALL)
    history = RequestHistory()
    records = {number: begin(history, number, name=f"cmpl-{number}") for number in range(4)}
    log: dict[int, list[SequenceEvent | None]] = {number: [] for number in range(4)}
    steps: dict[int, list[tuple[int, int]]] = {number: [] for number in range(4)}  # tokens, batch

    def observe(step: StepOutput) -> None:
        history.on_step(step)
        for event in step.events:
            log[event.request_id].append(event)
        for output in step.outputs:
            ended = sum(one.finish_reason is not None for one in step.outputs)
            steps[output.request_id].append((len(output.token_ids), step.stats.num_running + ended))

    requests = [make_request(number, random_prompt(number, 30), max_tokens=25) for number in range(4)]
    transcripts = run_to_end(engine, requests, on_step=observe)
    kinds = {event.kind for of_request in log.values() for event in of_request if event}
    assert kinds == {"wait", "join", "chunk", "preempt"}
    for number, record in records.items():
        check_events(record, log[number])
        batches = [batch for _, batch in steps[number]]
        assert record.explanation().choices == [
            ChoiceSteps(
                choice=0,
                engine_request=number,
                tokens=len(transcripts[number].token_ids),
                steps=len(batches),
                mean_batch=round(sum(batches) / len(batches), 1),
                largest_batch=max(batches),
                finish_reason="length",
            )
        ]
        timeline = record.explanation().timeline
        finished = timeline[-1]
        assert (finished["event"], finished["reason"], finished["tokens"]) == ("finished", "length", 25)
        times = [event["at_ms"] for event in timeline]
        assert times == sorted(times)
    reasons = {event.reason for of_request in log.values() for event in of_request if event}
    assert {"batch full", "no free blocks", "behind others"} <= reasons


@pytest.mark.parametrize("last", [1, 2])
def test_chunks_sum_to_the_prompt_plus_recomputed_tokens(last: int) -> None:
    engine = tiny_engine(tiny_llama(), max_batch_tokens=16)
    chunks: list[int] = []

    def observe(step: StepOutput) -> None:
        chunks.extend(event.num_tokens for event in step.events if event.kind == "chunk")

    run_to_end(engine, [make_request(0, random_prompt(1, 48 + last), max_tokens=3)], on_step=observe)
    assert chunks == [16, 16, 16, last]


def step_of(*outputs: SequenceOutput, num_running: int = 1) -> StepOutput:
    return StepOutput(outputs=[*outputs], stats=StepStats(num_running=num_running))


def a_token(number: int, reason: Any = None) -> SequenceOutput:
    return SequenceOutput(request_id=number, token_ids=[1], finish_reason=reason)


def test_scheduler_events_have_the_time_of_the_step_start() -> None:
    history = RequestHistory()
    record = begin(history, 1)
    time.sleep(0.2)
    stats = StepStats(step_seconds=0.15, num_running=0)
    events_of_step = [SequenceEvent(1, "join", 0), SequenceEvent(1, "chunk", 5, 5)]
    history.on_step(StepOutput(outputs=[a_token(1, "stop")], stats=stats, events=events_of_step))
    _, queued, joined, computed, first, finished = record.explanation().timeline
    assert 40 < joined["at_ms"] - queued["at_ms"] < computed["at_ms"] - 100
    assert joined["waited_ms"] == pytest.approx(joined["at_ms"] - queued["at_ms"], abs=5)
    assert computed["at_ms"] <= first["at_ms"] <= finished["at_ms"]
    assert first["batch"] == 1  # it was in the batch, though it has left


def test_tokens_from_the_spill_file_are_an_event() -> None:
    history = RequestHistory()
    record = begin(history, 1)
    events_of_step = [SequenceEvent(1, "wait", reason="prefix being read"), SequenceEvent(1, "read", 96)]
    history.on_step(StepOutput(outputs=[], stats=StepStats(), events=[*events_of_step, SequenceEvent(1, "join", 96)]))
    waits, read, joined = record.explanation().timeline[-3:]
    assert (waits["event"], waits["reason"]) == ("waits", "prefix being read")
    assert (read["event"], read["tokens"]) == ("read from file", 96)
    assert (joined["event"], joined["cached_tokens"]) == ("joined", 96)


def test_the_total_number_of_choices_is_limited() -> None:
    history = RequestHistory(max_records=10, max_choices=5)
    for number in range(1, 7):
        begin(history, number, 10 + number, name=f"cmpl-{number}")
        for choice in (number, 10 + number):
            history.drop(choice)
    assert [number for number in range(1, 7) if history.find(f"cmpl-{number}", "")] == [5, 6]


def test_choices_have_their_own_events_and_a_restart_is_recorded() -> None:
    history = RequestHistory()
    record = begin(history, 5, 6)
    history.on_step(step_of(a_token(5), a_token(6), num_running=2))
    history.on_replay(1, 1.5)
    history.on_step(step_of(a_token(6, "stop")))
    history.on_step(step_of(a_token(5, "length")))
    assert events(record) == [
        "arrived",
        "queued",
        "queued",
        "first token",
        "first token",
        "engine replaced",
        "finished",
        "finished",
    ]
    timeline = record.explanation().timeline
    assert (timeline[5]["down_ms"], timeline[5]["tokens"]) == (1500, 2)
    assert [event["choice"] for event in timeline[6:]] == [1, 0]
    assert record.explanation().is_finished


def test_a_disconnect_ends_the_record() -> None:
    history = RequestHistory()
    record = begin(history, 1)
    history.drop(1)
    history.drop(1)
    history.on_step(step_of(a_token(1)))
    assert events(record) == ["arrived", "queued", "finished"]
    assert record.explanation().timeline[-1]["reason"] == "abort"


def test_a_history_keeps_the_latest_records_and_all_running_ones() -> None:
    history = RequestHistory(max_records=2)
    running = begin(history, 1, name="running")
    for number in range(2, 6):
        begin(history, number, name=f"ended {number}")
        history.drop(number)
    assert history.find("running", "") is running
    assert history.find("ended 5", "") is not None
    assert [history.find(f"ended {number}", "") for number in (2, 3, 4)] == [None] * 3
    assert history.find("exchange of ended 2", "") is None
    assert len(history._by_request) == 2


def test_a_record_is_found_by_both_ids_and_only_by_its_key() -> None:
    history = RequestHistory()
    record = begin(history, 1, key="alice")
    assert history.find("cmpl-1", "alice") is history.find("exchange of cmpl-1", "alice") is record
    assert history.find("cmpl-1", "bob") is history.find("exchange of cmpl-1", "bob") is None


@pytest.mark.parametrize("num", [MAX_EVENTS, MAX_EVENTS + 7])
def test_the_number_of_events_is_limited(num: int) -> None:
    record = RequestRecord("a", "b", "", time.monotonic())
    for _ in range(num - 1):  # it has arrived
        record.add_event("computed")
    assert len(record.explanation().timeline) == MAX_EVENTS
    assert record.explanation().left_out == num - MAX_EVENTS


def test_a_full_record_still_has_its_end_and_all_times() -> None:
    history = RequestHistory()
    record = begin(history, 1)
    history.on_step(StepOutput(outputs=[], stats=StepStats(), events=[SequenceEvent(1, "join")]))
    for number in range(MAX_EVENTS + 100):
        chunk = SequenceEvent(1, "chunk", 1, number + 1)
        history.on_step(StepOutput(outputs=[], stats=StepStats(num_running=1), events=[chunk]))
    history.on_step(step_of(a_token(1)))
    history.on_step(step_of(a_token(1, "length")))
    assert events(record)[-2:] == ["first token", "finished"]
    assert record.explanation().left_out > 100
    assert record.explanation().choices[0].finish_reason == "length"
    assert {"queued_seconds", "first_token_seconds"} <= set(record.log_fields())
    assert [name for name, *_ in _phases(record.explanation().timeline)] == ["queue", "prefill", "decode"]


def test_a_full_record_still_has_all_finish_reasons() -> None:
    num = 150
    history = RequestHistory()
    record = begin(history, *range(num))

    def report(kind: EventKind, reason: WaitReason | None = None) -> None:
        happened = [SequenceEvent(number, kind, reason=reason) for number in range(num)]
        history.on_step(StepOutput(outputs=[], stats=StepStats(), events=happened))

    report("wait", "behind others")
    report("wait", "batch full")
    report("join")
    report("preempt")
    report("join")
    report("preempt")
    last = [event for event in record.explanation().timeline if event.get("choice") == num - 1]
    assert [event["event"] for event in last] == ["queued", "waits", "waits", "joined", "preempted", "joined"]
    assert record.explanation().left_out == num


def test_the_finish_reason_of_the_reader_overrides_the_engines() -> None:
    history = RequestHistory()
    record = begin(history, 1)
    for reason in (None, None, "length"):
        history.on_step(step_of(a_token(1, reason)))
    assert record.explanation().choices[0].finish_reason == "length"
    assert record.is_finished
    history.drop(1, "stop", 2)
    history.drop(1, "abort", 3)
    last = record.explanation().timeline[-1]
    assert (last["event"], last["reason"], last["tokens"]) == ("finished", "stop", 2)
    assert not history._running


def test_a_record_is_not_finished_while_choices_are_still_submitted() -> None:
    history = RequestHistory()
    record = begin(history, 1)
    history.drop(1, "length", 1)
    assert record.is_finished
    history.queue(record, 2)
    assert not record.is_finished


def test_a_load_of_the_model_is_recorded_in_the_requests_that_waited_for_it() -> None:
    history = RequestHistory()
    ended = begin(history, 1, name="cmpl-1")
    history.drop(1)
    waiting = begin(history, 2, 3, name="cmpl-2")
    history.on_wake(1.5)
    assert "model loaded" not in events(ended)
    assert [event for event in waiting.explanation().timeline if event["event"] == "model loaded"] == [
        {"at_ms": pytest.approx(0, abs=1000), "event": "model loaded", "load_ms": 1500}
    ]
