"""EngineOwner over processes that a test controls: restarts, missing heartbeats, clients that leave."""

import asyncio
from collections.abc import AsyncIterator

import msgspec
import pytest

from caravan.model.sampling.sampling_params import SamplingParams
from caravan.scheduler.messages import (
    Abort,
    BatchBegins,
    EngineReady,
    EngineSnapshot,
    Heartbeat,
    Request,
    SequenceEvent,
    SequenceOutput,
    StartEngine,
    StepOutput,
    StepStats,
    Subscribe,
)
from caravan.server.engine import loop_clock
from caravan.server.engine.process import EngineStartFailed
from caravan.server.replicas import engine_owner
from caravan.server.replicas.engine_owner import EngineOwner
from caravan.server.replicas.replica import (
    Draining,
    FromReplica,
    ReplicaLost,
    ReplicaMessages,
    ToReplica,
    encode_messages,
)
from tests.support.engine_reports import READY
from tests.support.fake_process import FakeProcess
from tests.support.waiting import until


class Client:
    """An API process that is connected: what it has received."""

    def __init__(self, owner: EngineOwner, name: str) -> None:
        self._owner = owner
        self._name = name
        self.seen: list[FromReplica] = []
        self._bodies = owner.messages(name)
        self._task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for body in self._bodies:
            self.seen += msgspec.msgpack.decode(body, type=ReplicaMessages).messages

    @property
    def has_ended(self) -> bool:
        return self._task.done()

    def send(self, *messages: ToReplica) -> None:
        self._owner.receive(self._name, encode_messages([*messages]))

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self._bodies.aclose()


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> list[FakeProcess]:
    monkeypatch.setattr(loop_clock, "CHECK_PERIOD_SECONDS", 0.01)
    monkeypatch.setattr(engine_owner, "FIRST_PAUSE_SECONDS", 0.005)
    return FakeProcess.used_by(engine_owner, monkeypatch)


@pytest.fixture
async def owner(processes: list[FakeProcess]) -> AsyncIterator[EngineOwner]:
    owner = EngineOwner(StartEngine(model_path="m"), hang_seconds=60)
    task = asyncio.create_task(owner.run())
    await owner.ready()
    yield owner
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def connected(owner: EngineOwner, *names: str) -> list[Client]:
    clients = [Client(owner, name) for name in names]
    await until(lambda: all(client.seen == [READY] for client in clients))
    return clients


def a_request(request_id: int) -> Request:
    params = SamplingParams(max_tokens=8, seed=1)
    return Request(request_id=request_id, prompt_token_ids=[1, 2], params=params)


def a_step(*outputs: SequenceOutput, events: tuple[SequenceEvent, ...] = ()) -> StepOutput:
    return StepOutput(outputs=[*outputs], events=[*events], stats=StepStats(num_running=len(outputs)))


async def test_each_api_process_gets_its_own_outputs_with_its_own_numbers(
    owner: EngineOwner, processes: list[FakeProcess]
) -> None:
    one, two = await connected(owner, "one", "two")
    one.send(a_request(7))
    two.send(a_request(7))
    assert [sent.request_id for sent in processes[0].sent if isinstance(sent, Request)] == [1, 2]
    assert owner.num_queued_tokens() == 20
    processes[0].say(BatchBegins(request_ids=[1, 2]))
    processes[0].say(
        a_step(
            SequenceOutput(request_id=1, token_ids=[4]),
            SequenceOutput(request_id=2, token_ids=[5], finish_reason="length"),
            events=(SequenceEvent(2, "join"),),
        )
    )
    processes[0].say(Heartbeat())
    await until(lambda: Heartbeat() in one.seen and Heartbeat() in two.seen)
    assert owner.num_queued_tokens() == 0
    assert owner.num_requests == 1
    assert one.seen[1] == two.seen[1] == BatchBegins(request_ids=[7])
    step = two.seen[2]
    assert isinstance(step, StepOutput)
    assert [(output.request_id, output.token_ids) for output in step.outputs] == [(7, [5])]
    assert step.events == [SequenceEvent(7, "join")]
    assert step.stats.num_running == 2
    processes[0].say(a_step(SequenceOutput(request_id=99, token_ids=[1])))


async def test_aborts_and_closed_connections_abort_in_the_engine(
    owner: EngineOwner, processes: list[FakeProcess]
) -> None:
    (one,) = await connected(owner, "one")
    one.send(a_request(7), a_request(8), Abort(request_id=7), Abort(request_id=70))
    assert processes[0].sent[2:] == [Abort(request_id=1)]
    await one.close()
    assert processes[0].sent[3:] == [Abort(request_id=2)]
    assert owner.num_requests == 0
    with pytest.raises(ReplicaLost):
        one.send(a_request(9))


async def test_snapshots_go_to_those_who_want_them_and_stop_with_the_last(
    owner: EngineOwner, processes: list[FakeProcess]
) -> None:
    one, two = await connected(owner, "one", "two")
    one.send(Subscribe(period_seconds=0.5))
    snapshot = EngineSnapshot(
        stats=StepStats(), block_size=1, blocks_per_cell=1, cell_states=[0], running=[], waiting=[]
    )
    processes[0].say(snapshot)
    processes[0].say(Heartbeat())
    await until(lambda: Heartbeat() in one.seen and Heartbeat() in two.seen)
    assert snapshot in one.seen
    assert len(two.seen) == 2
    await one.close()
    assert processes[0].sent == [Subscribe(period_seconds=0.5), Subscribe(period_seconds=0.0)]


async def test_connections_end_with_the_engine_and_the_next_one_gets_the_same_limits(
    owner: EngineOwner, processes: list[FakeProcess]
) -> None:
    (one,) = await connected(owner, "one")
    one.send(a_request(7))
    processes[0].kill()
    await until(lambda: one.has_ended and len(processes) == 2)
    assert owner.num_requests == 0
    again = processes[1].start
    assert again.is_replacement
    assert again.limits.kv_cache_memory_bytes == READY.kv_cache_bytes
    assert again.limits.max_model_len == READY.config.max_model_len
    (later,) = await connected(owner, "later")
    later.send(a_request(1))
    assert owner.pid == 2


async def test_failed_restarts_are_repeated(
    owner: EngineOwner, processes: list[FakeProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeProcess, "fails_to_start", True)
    processes[0].kill()
    await until(lambda: len(processes) >= 3)
    assert owner.report is None
    monkeypatch.setattr(FakeProcess, "fails_to_start", False)
    assert isinstance(await asyncio.wait_for(owner.ready(), 60), EngineReady)


async def test_a_first_engine_that_cannot_start_ends_the_owner(
    processes: list[FakeProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeProcess, "fails_to_start", True)
    owner = EngineOwner(StartEngine(model_path="m"))
    await asyncio.wait_for(owner.run(), 60)
    with pytest.raises(EngineStartFailed, match="no memory"):
        await owner.ready()


async def test_a_silent_engine_is_killed_and_a_silent_api_process_is_left(
    owner: EngineOwner, processes: list[FakeProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    (one,) = await connected(owner, "one")
    one.send(a_request(7))
    monkeypatch.setattr(engine_owner, "CLIENT_SILENCE_SECONDS", 0.0)
    await until(lambda: one.has_ended)
    assert processes[0].sent[1:] == [Abort(request_id=1)]
    owner._hang_seconds = 0.0
    await until(lambda: processes[0].is_killed and len(processes) > 1)


async def test_draining_is_announced_to_all_and_waits_for_requests_for_a_time(
    owner: EngineOwner, processes: list[FakeProcess]
) -> None:
    (one,) = await connected(owner, "one")
    one.send(a_request(7))
    drained = asyncio.create_task(owner.drain(5.0))
    await until(lambda: Draining() in one.seen)
    assert not drained.done()
    processes[0].say(a_step(SequenceOutput(request_id=1, token_ids=[], finish_reason="abort")))
    await asyncio.wait_for(drained, 60)
    one.send(a_request(8))
    await asyncio.wait_for(owner.drain(0.1), 60)
    assert owner.num_requests == 1
    later = Client(owner, "later")
    await until(lambda: later.seen == [READY, Draining()])


async def test_a_late_event_loop_is_no_silence() -> None:
    clock = loop_clock.LoopClock()
    silence = loop_clock.Silence(clock)
    clock._ticked_at_seconds -= 5.0
    silence._heard_at_seconds -= 5.0
    assert silence.seconds() < 1.0
    silence.excuse(clock.late_seconds())
    clock._ticked_at_seconds += 5.0
    assert silence.seconds() < 1.0
