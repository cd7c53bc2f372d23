"""LiveView: snapshots of the engine are sent to subscribers only, and buffered within limits."""

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from rich.console import Console

from caravan.cli.engine_table import TopFailed, drawn, views
from caravan.scheduler.messages import (
    CACHED,
    FREE,
    MAX_CELLS,
    SHARED,
    USED,
    SequenceEvent,
    SequenceOutput,
    StepOutput,
    StepStats,
)
from caravan.scheduler.snapshot import engine_snapshot
from caravan.scheduler.snapshots import Snapshots
from caravan.server.operations.live_view import (
    MAX_BUFFERED,
    MAX_STEPS,
    MAX_SUBSCRIBERS,
    SNAPSHOT_SECONDS,
    LiveView,
    Subscriber,
)
from tests.scheduler.requests import FakeClock, make_request
from tests.server.openai.api import Api, open_api
from tests.server.openai.asgi import AsgiRequest
from tests.support.running_server import running_server
from tests.support.scheduler_steps import make_scheduler, step
from tests.support.waiting import until


def test_a_snapshot_has_the_cells_of_sequences_and_the_queue() -> None:
    scheduler = make_scheduler(num_blocks=16, max_num_seqs=2)
    for request_id, prompt in ((1, [1, 2, 3, 4, 5]), (2, [9, 8, 7]), (3, [1])):
        scheduler.add(make_request(request_id, prompt, max_tokens=9))
    step(scheduler)
    view = engine_snapshot(scheduler)
    assert view.blocks_per_cell == 1
    assert [row.request_id for row in view.running] == [1, 2]
    (waiting,) = view.waiting
    assert (waiting.request_id, waiting.wait_reason) == (3, "batch full")
    for row, sequence in zip(view.running, scheduler.running, strict=True):
        assert row.num_computed_tokens == sequence.num_computed_tokens
        assert row.num_blocks == len(sequence.block_table)
        assert row.num_step_tokens == sequence.num_prompt_tokens
        for block in sequence.block_table:
            assert view.cell_states[block] == USED
    assert view.cell_states.count(USED) == view.stats.num_used_blocks
    assert view.cell_states.count(FREE) == 16 - view.stats.num_used_blocks


def test_shared_and_cached_blocks_have_different_states() -> None:
    scheduler = make_scheduler(num_blocks=16)
    scheduler.add(make_request(1, [1, 2, 3, 4, 5], max_tokens=9))
    step(scheduler)
    scheduler.add(make_request(2, [1, 2, 3, 4, 6], max_tokens=9))
    step(scheduler)
    shared = engine_snapshot(scheduler).cell_states.count(SHARED)
    assert shared == len(set(scheduler.running[0].block_table) & set(scheduler.running[1].block_table)) > 0
    for request_id in (1, 2):
        scheduler.abort(request_id)
    view = engine_snapshot(scheduler)
    assert view.cell_states.count(CACHED) == view.stats.num_cached_blocks > 0
    assert USED not in view.cell_states


def test_a_large_pool_has_several_blocks_in_a_cell() -> None:
    scheduler = make_scheduler(num_blocks=5000, max_model_len=100)
    scheduler.add(make_request(7, list(range(50)), max_tokens=9))
    step(scheduler)
    view = engine_snapshot(scheduler)
    assert view.blocks_per_cell == 3
    assert len(view.cell_states) == 1667 <= MAX_CELLS
    assert {*view.cell_states} == {FREE, USED}


def a_step(number: int) -> StepOutput:
    stats = StepStats(step=number, num_decode_tokens=1, step_seconds=0.01)
    output = SequenceOutput(request_id=1, token_ids=[1], finish_reason="stop")
    return StepOutput(outputs=[output], stats=stats, events=[SequenceEvent(1, "join", 3)])


@contextmanager
def subscriber_of(live_view: LiveView) -> Iterator[Subscriber]:
    subscriber = live_view.subscribe()
    yield subscriber
    live_view.unsubscribe(subscriber)


async def next_snapshot(subscriber: Subscriber) -> dict[str, Any]:
    body = await subscriber.take()
    assert body is not None
    assert body.startswith(b"event: view\ndata: ")
    view: dict[str, Any] = json.loads(body.partition(b"data: ")[2])
    return view


async def snapshot_after(live_view: LiveView, *steps: int) -> dict[str, Any]:
    with subscriber_of(live_view) as subscriber:
        for number in steps:
            live_view.on_step(a_step(number))
        live_view.on_snapshot(engine_snapshot(make_scheduler()))
        return await next_snapshot(subscriber)


async def test_steps_and_events_are_sent_once_with_the_next_snapshot() -> None:
    live_view = LiveView(lambda _: None)
    view = await snapshot_after(live_view, 1, 2)
    assert view["steps"] == [[1, 0, 1, 10.0], [2, 0, 1, 10.0]]
    assert [(event["step"], event["kind"], event["text"]) for event in view["events"]] == [
        (1, "join", "prefix hit, 3 tokens from the cache"),
        (1, "finish", "stop"),
        (2, "join", "prefix hit, 3 tokens from the cache"),
        (2, "finish", "stop"),
    ]
    assert (await snapshot_after(live_view))["steps"] == []


async def test_evicted_blocks_are_an_event() -> None:
    scheduler = make_scheduler(num_blocks=8)
    live_view = LiveView(lambda _: None)
    with subscriber_of(live_view) as subscriber:
        for number in range(3):
            prompt = [100 * number + position for position in range(20)]
            scheduler.add(make_request(number, prompt, max_tokens=1))
            while scheduler.has_work:
                live_view.on_step(step(scheduler)[1])
        live_view.on_snapshot(engine_snapshot(scheduler))
        view = await next_snapshot(subscriber)
    evicted = [int(event["text"].split()[0]) for event in view["events"] if event["kind"] == "evict"]
    assert sum(evicted) == scheduler.pool.num_evicted > 0


async def test_step_numbers_continue_after_an_engine_restart() -> None:
    live_view = LiveView(lambda _: None)
    with subscriber_of(live_view) as subscriber:
        for number in (1, 2):
            live_view.on_step(a_step(number))
        live_view.on_replay(1, 0.5)
        live_view.on_step(a_step(1))
        live_view.on_snapshot(engine_snapshot(make_scheduler()))
        view = await next_snapshot(subscriber)
    assert [number for number, *_ in view["steps"]] == [1, 2, 3]
    assert view["step"] == 3
    assert [(one["step"], one["kind"]) for one in view["events"]][4:] == [(2, "restart"), (3, "join"), (3, "finish")]


async def test_subscribers_see_at_once_that_the_engine_is_being_replaced() -> None:
    live_view = LiveView(lambda _: None)
    live_view.on_restart()  # nobody watches
    live_view.on_replay(0, 0.5)
    scheduler = make_scheduler(num_blocks=16)
    scheduler.add(make_request(1, [1, 2, 3, 4, 5], max_tokens=9))
    step(scheduler)
    with subscriber_of(live_view) as subscriber:
        live_view.on_snapshot(engine_snapshot(scheduler))
        assert not (await next_snapshot(subscriber))["is_replacing"]
        for _ in range(2):  # the first new process has failed
            live_view.on_restart()
        view = await next_snapshot(subscriber)
        assert view["is_replacing"]
        assert [event["text"] for event in view["events"]] == ["the engine is being replaced"]
        assert (view["num_blocks"], view["cell_states"]) == (16, f"{FREE}" * 16)
        assert (view["running"], view["waiting"], view["num_running"], view["num_used_blocks"]) == ([], [], 0, 0)
        live_view.on_replay(1, 0.5)
        live_view.on_snapshot(engine_snapshot(scheduler))
        view = await next_snapshot(subscriber)
        assert not view["is_replacing"]
        assert [event["text"] for event in view["events"]] == ["the engine was replaced"]


async def test_waiting_behind_others_is_not_an_event() -> None:
    live_view = LiveView(lambda _: None)
    with subscriber_of(live_view) as subscriber:
        waits = [SequenceEvent(number, "wait", reason="behind others") for number in range(2000)]
        live_view.on_step(StepOutput(outputs=[], stats=StepStats(step=1), events=[SequenceEvent(1, "join"), *waits]))
        live_view.on_snapshot(engine_snapshot(make_scheduler()))
        assert [event["kind"] for event in (await next_snapshot(subscriber))["events"]] == ["join"]


async def test_steps_and_snapshots_are_limited() -> None:
    live_view = LiveView(lambda _: None)
    view = await snapshot_after(live_view, *range(1000))
    assert len(view["steps"]) == len(view["events"]) == MAX_STEPS
    with subscriber_of(live_view) as slow:
        for _ in range(100):
            live_view.on_snapshot(engine_snapshot(make_scheduler()))
        assert len(slow._bodies) == MAX_BUFFERED


async def test_the_engine_sends_snapshots_only_while_there_are_subscribers() -> None:
    periods: list[float] = []
    live_view = LiveView(periods.append)
    live_view.on_step(a_step(1))
    with subscriber_of(live_view), subscriber_of(live_view):
        assert periods == [SNAPSHOT_SECONDS] * 2  # the second subscriber needs tables, too
    assert periods == [SNAPSHOT_SECONDS, SNAPSHOT_SECONDS, 0]
    assert (await snapshot_after(live_view))["steps"] == []


async def test_a_shutdown_ends_the_streams_of_subscribers() -> None:
    live_view = LiveView(lambda _: None)
    with subscriber_of(live_view) as subscriber:
        live_view.on_snapshot(engine_snapshot(make_scheduler()))
        live_view.close()
        assert await subscriber.take() is not None
        assert await subscriber.take() is None
    with subscriber_of(live_view) as late:
        assert await late.take() is None


async def test_concurrent_subscribers_are_limited() -> None:
    async def statuses(api: Api) -> list[int | None]:
        requests = [AsgiRequest(api.app, "/v1/engine/events", None) for _ in range(MAX_SUBSCRIBERS + 4)]
        await until(lambda: all(request.status for request in requests))
        for request in requests:
            request.leave()
            await request.end()
        return [request.status for request in requests]

    async with open_api() as api:
        for _ in range(2):  # those who have left are not counted
            answers = await statuses(api)
            assert (answers.count(200), answers.count(429)) == (MAX_SUBSCRIBERS, 4)


def test_a_busy_engine_sends_less_than_thirty_kilobytes_a_second() -> None:
    clock = FakeClock()
    limits = {"num_blocks": 4096, "block_size": 16, "max_num_seqs": 32, "max_model_len": 2048, "max_batch_tokens": 512}
    scheduler, live_view = make_scheduler(**limits), LiveView(lambda _: None)
    snapshots, sizes = Snapshots(live_view.on_snapshot, clock), []
    with subscriber_of(live_view) as subscriber:
        snapshots.subscribe(SNAPSHOT_SECONDS)
        for number in range(1, 1 + 60 * 12):  # steps of 12 s
            while len(scheduler.running) + len(scheduler.waiting) < 32:
                prompt = [number, *range(200)]
                scheduler.add(make_request(number + len(scheduler.waiting) * 10_000, prompt, max_tokens=300))
            clock.seconds += 1 / 60
            _, output = step(scheduler)
            live_view.on_step(output)
            snapshots.after_step(scheduler, output.stats)
            while subscriber._bodies:
                sizes.append(len(subscriber._bodies.popleft() or b""))
    assert len(sizes) > 30
    print(f"{sum(sizes) / 12:,.0f} bytes a second in {len(sizes)} snapshots of at most {max(sizes):,} bytes")
    assert sum(sizes) / 12 < 30_000


@pytest.mark.slow
def test_a_server_streams_snapshots_to_http_clients_and_to_caravan_top(
    tiny_model_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with running_server(tiny_model_path, "--kv-cache-memory", "256KiB", "--max-num-seqs", "2") as server:
        body = {"model": "tiny", "prompt": "hello", "max_tokens": 400, "ignore_eos": True, "n": 16, "stream": True}
        seen: list[dict[str, Any]] = []
        with server.http.stream("POST", "/v1/completions", json=body) as response:
            lines = response.iter_lines()
            next(lines)
            for view in views(server.url):
                seen.append(view)
                if any(event["kind"] == "finish" for event in view["events"]):
                    break
            for _ in lines:
                pass
        assert any(view["num_running"] == 2 and view["num_waiting"] >= 1 for view in seen)
        assert any(view["steps"] for view in seen)
        for view in seen:
            used = sum(state in "23" for state in view["cell_states"])
            assert used == view["num_used_blocks"]
        written = io.StringIO()
        console = Console(file=written, width=140, height=200)
        console.print(drawn(seen[-1], seen[-1]["events"], console.size))
        for text in ("KV pool", "running", "answer", "finish"):
            assert text in written.getvalue()
        clients = [httpx.Client(base_url=server.url, trust_env=False) for _ in range(MAX_SUBSCRIBERS)]
        streams = [http.stream("GET", "/v1/engine/events") for http in clients]
        received = [stream.__enter__().iter_bytes() for stream in streams]
        for bodies in received:
            next(bodies)
        with pytest.raises(TopFailed, match="limit of 8 subscribers"):
            next(views(server.url))
        server.process.terminate()
        for bodies in received:
            for _ in bodies:  # to its end, which is one: the server closed it
                pass
        assert server.process.wait(60) == 0
        assert "Traceback" not in capfd.readouterr().err
        for stream, http in zip(streams, clients, strict=True):
            stream.__exit__(None, None, None)
            http.close()


def test_an_unreachable_server_is_one_line() -> None:
    with pytest.raises(TopFailed, match="does not respond"):
        next(views("http://127.0.0.1:1"))


def test_steps_are_numbered_on_after_the_model_was_loaded_again() -> None:
    view = LiveView(lambda _: None)
    subscriber = view.subscribe()
    view.on_step(StepOutput(outputs=[], stats=StepStats(step=7, num_decode_tokens=1)))
    view.on_wake(1.25)
    view.on_step(StepOutput(outputs=[], stats=StepStats(step=1, num_decode_tokens=1)))
    view.on_snapshot(engine_snapshot(make_scheduler()))
    (body,) = subscriber._bodies
    assert body is not None
    sent = json.loads(body.partition(b"data: ")[2])
    assert sent["step"] == 8
    assert [step[0] for step in sent["steps"]] == [7, 8]
    assert sent["events"] == [{"step": 7, "request": 0, "kind": "restart", "text": "the model was loaded in 1.2 s"}]
    view.unsubscribe(subscriber)
    view.on_wake(1.0)
