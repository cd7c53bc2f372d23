"""EngineClient over processes that a test controls: failed restarts, missing heartbeats and messages."""

import asyncio
import logging

import pytest
from typing_extensions import override

from caravan.model.sampling.sampling_params import SamplingParams
from caravan.scheduler.messages import (
    Abort,
    BatchBegins,
    EngineLog,
    EngineReady,
    EngineSnapshot,
    Heartbeat,
    Request,
    SequenceOutput,
    StartEngine,
    StepOutput,
    StepStats,
    Subscribe,
)
from caravan.server.engine import client as module
from caravan.server.engine.client import EngineClient
from caravan.server.engine.listener import EngineListener
from caravan.server.engine.output_queue import EngineDied, EngineUnavailable
from caravan.server.engine.process import EngineStartFailed
from tests.support.engine_reports import READY
from tests.support.fake_process import FakeProcess
from tests.support.waiting import until


class Listener(EngineListener):
    """Counts the events of the engine."""

    def __init__(self) -> None:
        self.snapshots: list[EngineSnapshot] = []
        self.num_steps = 0
        self.num_restarts = 0
        self.replays: list[int] = []

    @override
    def on_snapshot(self, snapshot: EngineSnapshot) -> None:
        self.snapshots.append(snapshot)

    @override
    def on_step(self, output: StepOutput) -> None:
        self.num_steps += 1

    @override
    def on_restart(self) -> None:
        self.num_restarts += 1

    @override
    def on_replay(self, num_requests: int, down_seconds: float) -> None:
        self.replays.append(num_requests)


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> list[FakeProcess]:
    monkeypatch.setattr(module, "FIRST_PAUSE_SECONDS", 0.001)
    return FakeProcess.used_by(module, monkeypatch)


async def started(listener: Listener | None = None) -> EngineClient:
    client = EngineClient(StartEngine(model_path="model"), hang_seconds=60)
    client.listener = listener or Listener()
    assert await client.ready() == READY
    return client


def request(max_tokens: int = 9) -> Request:
    return Request(prompt_token_ids=[1, 2], params=SamplingParams(max_tokens=max_tokens, seed=1))


def step(request_id: int, token_id: int, *, is_last: bool = False) -> StepOutput:
    output = SequenceOutput(request_id=request_id, token_ids=[token_id], finish_reason="length" if is_last else None)
    return StepOutput(outputs=[output], stats=StepStats(step=1))


async def test_outputs_reach_their_requests_and_aborts_reach_the_engine(processes: list[FakeProcess]) -> None:
    listener = Listener()
    client = await started(listener)
    (process,) = processes
    first, second = client.submit(request()), client.submit(request())
    assert [message.request_id for message in process.sent if isinstance(message, Request)] == [1, 2]
    process.say(BatchBegins(request_ids=[1, 2]))
    process.say(step(1, 7))
    process.say(step(2, 8, is_last=True))
    process.say(Heartbeat())
    one, other = first.take(), second.take()
    assert one is not None
    assert other is not None
    assert (one.token_ids, other.token_ids, other.finish_reason) == ([7], [8], "length")
    first.abort()
    second.abort()  # it has ended
    assert [message for message in process.sent if isinstance(message, Abort)] == [Abort(request_id=1)]
    process.say(step(1, 9))  # on its way when the request was aborted
    assert listener.num_steps == 3
    await client.stop()
    with pytest.raises(EngineUnavailable):
        client.submit(request())


async def test_a_subscription_is_sent_again_to_the_next_engine(processes: list[FakeProcess]) -> None:
    listener = Listener()
    client = await started(listener)
    client.subscribe(0.5)
    processes[0].kill()
    await until(lambda: len(processes) == 2 and client.is_ready)
    assert processes[1].sent == [Subscribe(period_seconds=0.5)]
    snapshot = EngineSnapshot(
        stats=StepStats(), block_size=16, blocks_per_cell=1, cell_states=[], running=[], waiting=[]
    )
    processes[1].say(snapshot)
    assert listener.snapshots == [snapshot]
    await client.stop()
    client.subscribe(0)  # there is no engine to send it to


async def test_the_next_engine_resumes_each_request_within_the_same_limits(processes: list[FakeProcess]) -> None:
    listener = Listener()
    client = await started(listener)
    stream = client.submit(request())
    processes[0].say(step(1, 7))
    processes[0].kill()
    await until(lambda: len(processes) == 2 and client.is_ready)
    (resumed,) = processes[1].sent
    assert isinstance(resumed, Request)
    assert (resumed.request_id, resumed.output_token_ids) == (1, [7])
    assert processes[1].start.limits.kv_cache_memory_bytes == READY.kv_cache_bytes
    assert processes[1].start.limits.max_model_len == READY.config.max_model_len
    assert (listener.num_restarts, listener.replays) == (1, [1])
    processes[1].say(step(1, 8, is_last=True))
    whole = stream.take()
    assert whole is not None
    assert whole.token_ids == [7, 8]
    await client.stop()


async def test_requests_that_arrive_while_the_engine_is_replaced_are_the_next_ones(
    processes: list[FakeProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    client = await started()
    first = client.submit(request())
    processes[0].say(step(1, 7))
    monkeypatch.setattr(FakeProcess, "fails_to_start", True)
    processes[0].kill()
    await until(lambda: client.state == "replacing")
    assert not client.is_ready
    second, third = client.submit(request()), client.submit(request())
    third.abort()
    monkeypatch.setattr(FakeProcess, "fails_to_start", False)
    await until(lambda: client.is_ready)
    assert client.state == "loaded"
    asked = [message for message in processes[-1].sent if isinstance(message, Request)]
    assert [(one.request_id, one.output_token_ids) for one in asked] == [(1, [7]), (2, [])]
    processes[-1].say(step(2, 8, is_last=True))
    assert (output := second.take()) is not None
    assert output.token_ids == [8]
    first.abort()
    await client.stop()


async def test_the_time_until_the_next_engine_is_that_of_the_latest_load(
    processes: list[FakeProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    client = await started()
    assert client.start_seconds() == 0
    may_load = asyncio.Event()

    async def ready(_: FakeProcess) -> EngineReady:
        await may_load.wait()
        return READY

    monkeypatch.setattr(FakeProcess, "ready", ready)
    client._load_seconds = 4000.0
    processes[0].kill()
    await until(lambda: len(processes) == 2)
    assert 3000 < client.start_seconds() <= 4000
    may_load.set()
    await until(lambda: client.is_ready)
    assert client.start_seconds() == 0
    assert client._load_seconds < 4000, "measured"
    await client.stop()


async def test_restarts_are_retried_and_requests_fail_if_the_engine_stays_away(
    processes: list[FakeProcess], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    client = await started()
    stream = client.submit(request())
    monkeypatch.setattr(FakeProcess, "fails_to_start", True)
    monkeypatch.setattr(module, "MAX_DOWN_SECONDS", 0.01)
    processes[0].kill()
    await until(lambda: len(processes) >= 5)
    with pytest.raises(EngineDied):
        stream.take()
    with pytest.raises(EngineUnavailable):
        client.submit(request())
    assert "The engine failed to start; retrying in 0.002 seconds: no memory" in caplog.text
    monkeypatch.setattr(FakeProcess, "fails_to_start", False)
    await until(lambda: client.is_ready)
    client.submit(request())
    assert [type(message) for message in processes[-1].sent] == [Request]
    assert all(process.num_stops == 1 for process in processes[:-1])
    await client.stop()


async def test_a_process_without_a_heartbeat_is_killed(
    processes: list[FakeProcess], caplog: pytest.LogCaptureFixture
) -> None:
    client = await started()
    client._hang_seconds = 0.05
    await until(lambda: processes[0].is_killed)
    client._hang_seconds = 60
    assert "sent no heartbeat for 0 seconds; killing it" in caplog.text
    await until(lambda: client.engine_pid == 2 and client.is_ready)
    await client.stop()


async def test_an_engine_that_cannot_start_at_first_is_an_error(
    processes: list[FakeProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeProcess, "fails_to_start", True)
    client = EngineClient(StartEngine(model_path="model"))
    with pytest.raises(EngineStartFailed, match="no memory"):
        await client.ready()
    assert processes[0].num_stops == 1


async def test_log_records_of_the_engine_are_logged(
    processes: list[FakeProcess], caplog: pytest.LogCaptureFixture
) -> None:
    client = await started()
    processes[0].say(EngineLog(level=logging.WARNING, text="the pool is 100% full"))
    assert [record.getMessage() for record in caplog.records] == ["the pool is 100% full"]
    await client.stop()
