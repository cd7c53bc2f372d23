"""Stories of requests, checked against what the scheduler says it did."""

import time
from typing import Any

import pytest

from caravan.scheduler.engine import Engine
from caravan.scheduler.messages import EventKind, SequenceEvent, SequenceOutput, StepOutput, StepStats, WaitReason
from caravan.server.observe.request_end import RequestEnd
from caravan.server.observe.request_history import StoryBook
from caravan.server.observe.request_story import MAX_MOMENTS, RequestStory
from caravan.server.observe.tracing import _phases
from tests.scheduler.requests import make_request
from tests.scheduler.test_determinism import random_prompt
from tests.tiny_llama import run_to_end, tiny_engine, tiny_llama


def begin(book: StoryBook, *numbers: int, name: str = "cmpl-1", key: str = "") -> RequestStory:
    story = RequestStory(name, f"exchange of {name}", key, time.monotonic())
    for number in numbers:
        book.queue(story, number, 0)
    book.begin(story)
    return story


def events(story: RequestStory) -> list[str]:
    return [moment["event"] for moment in story.written()["timeline"]]


# 12 blocks of 8 for four sequences of up to 60 tokens, two at once, 24 tokens a step
SMALL: dict[str, Any] = {
    "num_blocks": 12,
    "block_size": 8,
    "max_num_seqs": 2,
    "max_batch_tokens": 24,
    "max_model_len": 96,
}
WORDS = {"wait": "waits", "join": "joined", "chunk": "computed", "preempt": "preempted", "replay": "engine replaced"}


def check_told(story: RequestStory, log: list[SequenceEvent | None]) -> None:
    """Hold a story against the scheduler's own events, None for a new engine."""
    told = [moment for moment in story.written()["timeline"] if moment["event"] in WORDS.values()]
    assert [moment["event"] for moment in told] == [WORDS[event.kind if event else "replay"] for event in log]
    for moment, event in zip(told, log, strict=True):
        if event is None:
            continue
        match event.kind:
            case "wait":
                assert moment["reason"] == event.reason
            case "join":
                assert moment["cached_tokens"] == event.num_tokens
            case "chunk":
                assert (moment["tokens"], moment["computed_tokens"]) == (event.num_tokens, event.num_computed_tokens)
            case "preempt":
                assert moment["lost_tokens"] == event.num_tokens


def test_a_story_tells_exactly_that_a_request_waited_was_chunked_preempted_and_replayed() -> None:
    book = StoryBook()
    prompts = {number: random_prompt(number, 30) for number in range(4)}
    stories = {number: begin(book, number, name=f"cmpl-{number}") for number in prompts}
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
        book.on_step(output)
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
    book.on_replay(1, 0.5)
    for number in prompts.keys() - ended:
        log[number].append(None)
    engine = start()  # the other one was killed
    while engine.scheduler.has_work:
        step(engine)
    for number, story in stories.items():
        check_told(story, log[number])
    (replaced,) = (moment for moment in stories[victim].written()["timeline"] if moment["event"] == "engine replaced")
    assert (replaced["down_ms"], replaced["tokens"]) == (500, before)
    assert 0 < before < 25
    undisturbed = [make_request(number, prompt, max_tokens=25) for number, prompt in prompts.items()]
    transcripts = run_to_end(tiny_engine(tiny_llama(), **SMALL), undisturbed)
    assert tokens == {number: transcript.token_ids for number, transcript in transcripts.items()}


def test_a_story_tells_what_the_scheduler_did_and_in_what_company() -> None:
    engine = tiny_engine(tiny_llama(), **SMALL)
    book = StoryBook()
    stories = {number: begin(book, number, name=f"cmpl-{number}") for number in range(4)}
    log: dict[int, list[SequenceEvent | None]] = {number: [] for number in range(4)}
    steps: dict[int, list[tuple[int, int]]] = {number: [] for number in range(4)}  # tokens, batch

    def observe(step: StepOutput) -> None:
        book.on_step(step)
        for event in step.events:
            log[event.request_id].append(event)
        for output in step.outputs:
            ended = sum(one.finish_reason is not None for one in step.outputs)
            steps[output.request_id].append((len(output.token_ids), step.stats.num_running + ended))

    requests = [make_request(number, random_prompt(number, 30), max_tokens=25) for number in range(4)]
    transcripts = run_to_end(engine, requests, on_step=observe)
    kinds = {event.kind for of_request in log.values() for event in of_request if event}
    assert kinds == {"wait", "join", "chunk", "preempt"}
    for number, story in stories.items():
        check_told(story, log[number])
        written = story.written()
        batches = [batch for _, batch in steps[number]]
        assert written["choices"] == [
            {
                "choice": 0,
                "engine_request": number,
                "tokens": len(transcripts[number].token_ids),
                "steps": len(batches),
                "mean_batch": round(sum(batches) / len(batches), 1),
                "largest_batch": max(batches),
                "finish_reason": "length",
            }
        ]
        finished = written["timeline"][-1]
        assert (finished["event"], finished["reason"], finished["tokens"]) == ("finished", "length", 25)
        times = [moment["at_ms"] for moment in written["timeline"]]
        assert times == sorted(times)
    reasons = {event.reason for of_request in log.values() for event in of_request if event}
    assert {"batch full", "no free blocks", "behind others"} <= reasons


@pytest.mark.parametrize("last", [1, 2])
def test_chunks_add_up_to_the_prompt_and_to_what_a_preemption_lost(last: int) -> None:
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


def test_what_the_scheduler_did_was_when_the_step_began() -> None:
    book = StoryBook()
    story = begin(book, 1)
    time.sleep(0.2)
    stats = StepStats(step_seconds=0.15, num_running=0)
    events_of_step = [SequenceEvent(1, "join", 0), SequenceEvent(1, "chunk", 5, 5)]
    book.on_step(StepOutput(outputs=[a_token(1, "stop")], stats=stats, events=events_of_step))
    _, queued, joined, computed, first, finished = story.written()["timeline"]
    assert 40 < joined["at_ms"] - queued["at_ms"] < computed["at_ms"] - 100
    assert joined["waited_ms"] == pytest.approx(joined["at_ms"] - queued["at_ms"], abs=5)
    assert computed["at_ms"] <= first["at_ms"] <= finished["at_ms"]
    assert first["batch"] == 1  # it was in the batch, though it has left


def test_stories_of_many_choices_leave_room_for_fewer() -> None:
    book = StoryBook(max_stories=10, max_choices=5)
    for number in range(1, 7):
        begin(book, number, 10 + number, name=f"cmpl-{number}")
        for choice in (number, 10 + number):
            book.drop(choice)
    assert [number for number in range(1, 7) if book.find(f"cmpl-{number}", "")] == [5, 6]


def test_choices_are_told_apart_and_a_replaced_engine_is_told() -> None:
    book = StoryBook()
    story = begin(book, 5, 6)
    book.on_step(step_of(a_token(5), a_token(6), num_running=2))
    book.on_replay(1, 1.5)
    book.on_step(step_of(a_token(6, "stop")))
    book.on_step(step_of(a_token(5, "length")))
    assert events(story) == [
        "arrived",
        "queued",
        "queued",
        "first token",
        "first token",
        "engine replaced",
        "finished",
        "finished",
    ]
    written = story.written()
    assert (written["timeline"][5]["down_ms"], written["timeline"][5]["tokens"]) == (1500, 2)
    assert [moment["choice"] for moment in written["timeline"][6:]] == [1, 0]
    assert written["is_finished"]


def test_who_leaves_ends_the_story() -> None:
    book = StoryBook()
    story = begin(book, 1)
    book.drop(1)
    book.drop(1)
    book.on_step(step_of(a_token(1)))
    assert events(story) == ["arrived", "queued", "finished"]
    assert story.written()["timeline"][-1]["reason"] == "abort"


def test_a_book_keeps_the_last_stories_and_all_that_run() -> None:
    book = StoryBook(max_stories=2)
    running = begin(book, 1, name="running")
    for number in range(2, 6):
        begin(book, number, name=f"ended {number}")
        book.drop(number)
    assert book.find("running", "") is running
    assert book.find("ended 5", "") is not None
    assert [book.find(f"ended {number}", "") for number in (2, 3, 4)] == [None] * 3
    assert book.find("exchange of ended 2", "") is None
    assert len(book._by_request) == 2


def test_a_story_is_shown_to_its_key_only_under_either_name() -> None:
    book = StoryBook()
    story = begin(book, 1, key="alice")
    assert book.find("cmpl-1", "alice") is book.find("exchange of cmpl-1", "alice") is story
    assert book.find("cmpl-1", "bob") is book.find("exchange of cmpl-1", "bob") is None


@pytest.mark.parametrize("num", [MAX_MOMENTS, MAX_MOMENTS + 7])
def test_a_story_is_bounded(num: int) -> None:
    story = RequestStory("a", "b", "", time.monotonic())
    for _ in range(num - 1):  # it has arrived
        story.tell("computed")
    assert len(story.written()["timeline"]) == MAX_MOMENTS
    assert story.written()["left_out"] == num - MAX_MOMENTS


def test_a_story_of_many_moments_has_its_end_and_all_its_times() -> None:
    book = StoryBook()
    story = begin(book, 1)
    book.on_step(StepOutput(outputs=[], stats=StepStats(), events=[SequenceEvent(1, "join")]))
    for number in range(MAX_MOMENTS + 100):
        chunk = SequenceEvent(1, "chunk", 1, number + 1)
        book.on_step(StepOutput(outputs=[], stats=StepStats(num_running=1), events=[chunk]))
    book.on_step(step_of(a_token(1)))
    book.on_step(step_of(a_token(1, "length")))
    assert events(story)[-2:] == ["first token", "finished"]
    assert story.written()["left_out"] > 100
    assert story.written()["choices"][0]["finish_reason"] == "length"
    end = RequestEnd(model_name="m", story=story, num_prompt_tokens=600)
    assert {"queued_seconds", "first_token_seconds"} <= set(end.log_fields())
    assert [name for name, *_ in _phases(story.written()["timeline"])] == ["queue", "prefill", "decode"]


def test_a_story_of_many_choices_tells_the_last_reasons_too() -> None:
    num = 150
    book = StoryBook()
    story = begin(book, *range(num))

    def tell(kind: EventKind, reason: WaitReason | None = None) -> None:
        told = [SequenceEvent(number, kind, reason=reason) for number in range(num)]
        book.on_step(StepOutput(outputs=[], stats=StepStats(), events=told))

    tell("wait", "behind others")
    tell("wait", "batch full")
    tell("join")
    tell("preempt")
    tell("join")
    tell("preempt")
    last = [moment for moment in story.written()["timeline"] if moment.get("choice") == num - 1]
    assert [moment["event"] for moment in last] == ["queued", "waits", "waits", "joined", "preempted", "joined"]
    assert story.written()["left_out"] == num


def test_the_reader_says_how_a_choice_ended() -> None:
    book = StoryBook()
    story = begin(book, 1)
    for reason in (None, None, "length"):
        book.on_step(step_of(a_token(1, reason)))
    assert story.written()["choices"][0]["finish_reason"] == "length"
    assert story.is_finished
    book.drop(1, "stop", 2)
    book.drop(1, "abort", 3)
    last = story.written()["timeline"][-1]
    assert (last["event"], last["reason"], last["tokens"]) == ("finished", "stop", 2)
    assert not book._running
