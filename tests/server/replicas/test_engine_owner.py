"""EngineOwner with engine processes that crash and hang, alone and behind a ReplicaSet."""

import asyncio
import os
import random
import signal
import time
from collections.abc import AsyncIterator

import msgspec
import pytest
from typing_extensions import override

from caravan.model.sampling.sampling_params import SamplingParams
from caravan.scheduler.config import EngineConfig
from caravan.scheduler.messages import (
    Abort,
    EngineReady,
    EngineSnapshot,
    Request,
    SequenceSnapshot,
    StartEngine,
    StepOutput,
    StepStats,
    Subscribe,
)
from caravan.server.engine.output_queue import OutputQueue
from caravan.server.engine.process import EngineStartFailed
from caravan.server.replicas import engine_owner
from caravan.server.replicas.engine_owner import EngineOwner
from caravan.server.replicas.replica import Draining, FromReplica, ReplicaLost, ReplicaMessages, encode_messages
from caravan.server.replicas.replica_listener import ReplicaListener
from caravan.server.replicas.replica_set import ReplicaSet
from tests.support.local_replica import LocalReplica
from tests.support.scripted_engine import DIES, HANGS, token_at
from tests.support.waiting import until

pytestmark = pytest.mark.slow

PROGRAM = ("-m", "tests.support.scripted_engine", "0.01")
NUM_TOKENS = 60


@pytest.fixture
async def replicas() -> AsyncIterator[list[LocalReplica]]:
    made = [
        LocalReplica(name, EngineOwner(StartEngine(model_path=""), PROGRAM, hang_seconds=1.5))
        for name in ("one", "two")
    ]
    yield made
    for replica in made:
        await replica.stop()


@pytest.fixture
async def both(replicas: list[LocalReplica]) -> AsyncIterator[ReplicaSet]:
    both = ReplicaSet(hang_seconds=3.0)
    for replica in replicas:
        both.add(replica)
    await until(lambda: len(both.members) == 2)
    yield both
    await both.stop()


def a_request(prompt: list[int], request_id: int = 0, max_tokens: int = NUM_TOKENS) -> Request:
    params = SamplingParams(max_tokens=max_tokens, seed=1)
    return Request(request_id=request_id, prompt_token_ids=prompt, params=params)


async def answer(queue: OutputQueue) -> tuple[list[int], float]:
    """Return the tokens of a stream and its longest pause after the first of them."""
    tokens: list[int] = []
    has_output = asyncio.Event()
    queue.on_output = has_output.set
    pause, last = 0.0, 0.0
    while True:
        output = queue.take()
        if output is None:
            has_output.clear()
            await asyncio.wait_for(has_output.wait(), 60)
            continue
        now = time.monotonic()
        pause, last = max(pause, now - last if last else 0.0), now
        tokens += output.token_ids
        if output.finish_reason is not None:
            assert output.finish_reason == "length", output.error
            return tokens, pause


def expected(prompt: list[int], num_tokens: int = NUM_TOKENS) -> list[int]:
    return [token_at(prompt, position) for position in range(num_tokens)]


class Reader:
    """An API process as an engine's owner sees it."""

    def __init__(self, owner: EngineOwner, name: str) -> None:
        self._owner = owner
        self._name = name
        self._messages = owner.messages(name)
        self.seen: list[FromReplica] = []
        self.has_ended = False
        self._task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for body in self._messages:
            self.seen += msgspec.msgpack.decode(body, type=ReplicaMessages).messages
        self.has_ended = True

    def send(self, *messages: Request | Abort | Subscribe) -> None:
        self._owner.receive(self._name, encode_messages([*messages]))

    def tokens_of(self, request_id: int) -> list[int]:
        steps = (one for one in self.seen if isinstance(one, StepOutput))
        return [
            token for step in steps for one in step.outputs if one.request_id == request_id for token in one.token_ids
        ]

    def owners(self) -> set[int]:
        """Return the numbers of all requests that it has seen something of."""
        return {one.request_id for step in self.seen if isinstance(step, StepOutput) for one in step.outputs}

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self._messages.aclose()


async def test_two_api_processes_use_one_engine_with_equal_numbers(replicas: list[LocalReplica]) -> None:
    owner = replicas[0].owner
    readers = [Reader(owner, name) for name in ("a", "b")]
    await until(lambda: all(reader.seen for reader in readers))
    assert all(isinstance(reader.seen[0], EngineReady) for reader in readers)
    for reader, prompt in zip(readers, ([100], [200]), strict=True):
        reader.send(a_request(prompt, 1, 5))
    assert owner.num_requests == 2
    assert owner.num_queued_tokens() == 2 * (1 + 5)
    await until(lambda: owner.num_requests == 0)
    await until(lambda: all(len(reader.tokens_of(1)) == 5 for reader in readers))
    assert readers[0].tokens_of(1) == expected([100], 5)
    assert readers[1].tokens_of(1) == expected([200], 5)
    assert readers[0].owners() == {1}
    for reader in readers:
        await reader.close()


async def test_a_request_ends_with_its_connection_and_when_it_is_aborted(replicas: list[LocalReplica]) -> None:
    owner = replicas[0].owner
    reader = Reader(owner, "a")
    await until(lambda: bool(reader.seen))
    reader.send(a_request([100], 1, 10_000), a_request([101], 2, 10_000))
    reader.send(Abort(request_id=1), Abort(request_id=7))
    assert owner.num_requests == 1
    await until(lambda: len(reader.tokens_of(2)) > 2)
    assert owner.num_queued_tokens() == 0
    await reader.close()
    assert owner.num_requests == 0
    with pytest.raises(ReplicaLost, match="the connection has ended"):
        reader.send(a_request([100], 3))


async def test_a_silent_api_process_is_left(replicas: list[LocalReplica], monkeypatch: pytest.MonkeyPatch) -> None:
    reader = Reader(replicas[0].owner, "a")
    await until(lambda: bool(reader.seen))
    reader.send(a_request([100], 1, 10_000))
    monkeypatch.setattr(engine_owner, "CLIENT_SILENCE_SECONDS", 0.1)
    await until(lambda: reader.has_ended)
    assert replicas[0].owner.num_requests == 0


async def test_draining_tells_the_api_processes_and_waits_for_requests(replicas: list[LocalReplica]) -> None:
    owner = replicas[0].owner
    reader = Reader(owner, "a")
    await until(lambda: bool(reader.seen))
    reader.send(a_request([100], 1, 30))
    await owner.drain(20.0)
    assert owner.num_requests == 0
    reader.send(a_request([100], 2, 10_000))
    await owner.drain(0.1)
    assert owner.num_requests == 1
    later = Reader(owner, "b")
    await until(lambda: Draining() in reader.seen and Draining() in later.seen)
    for one in (reader, later):
        await one.close()


async def test_an_engine_that_cannot_start_is_reported() -> None:
    owner = EngineOwner(StartEngine(model_path="/nowhere.gguf"))
    await asyncio.wait_for(owner.run(), 60)
    with pytest.raises(EngineStartFailed):
        await owner.ready()


async def test_a_snapshot_shows_the_requests_of_others_without_a_number(replicas: list[LocalReplica]) -> None:
    owner = replicas[0].owner
    readers = [Reader(owner, name) for name in ("a", "b")]
    await until(lambda: all(reader.seen for reader in readers))
    readers[1].send(a_request([200], 5, 10_000))
    readers[0].send(a_request([100], 9, 10_000), Subscribe(period_seconds=0.2))

    def sequence(number: int) -> SequenceSnapshot:
        return SequenceSnapshot(
            request_id=number, num_prompt_tokens=1, num_tokens=1, num_computed_tokens=1, max_tokens=1, num_blocks=1
        )

    owner._on_message(
        EngineSnapshot(
            stats=StepStats(),
            block_size=16,
            blocks_per_cell=1,
            cell_states=[2, 2, 0],
            running=[sequence(1), sequence(2)],
            waiting=[sequence(2)],
        )
    )
    await until(lambda: any(isinstance(one, EngineSnapshot) for one in readers[0].seen))
    (snapshot,) = (one for one in readers[0].seen if isinstance(one, EngineSnapshot))
    assert [one.request_id for one in snapshot.running] == [0, 9]
    assert not any(isinstance(one, EngineSnapshot) for one in readers[1].seen)
    for reader in readers:
        await reader.close()


async def test_streams_go_on_at_once_when_an_engine_is_killed(both: ReplicaSet, replicas: list[LocalReplica]) -> None:
    prompts = [[100 + index, *range(index + 1)] for index in range(8)]
    dice = random.Random(7)
    streams = [asyncio.create_task(answer(both.submit(a_request(prompt)))) for prompt in prompts]
    for _ in range(4):
        await asyncio.sleep(dice.uniform(0.05, 0.3))
        await until(lambda: len(both.members) == 2)
        os.kill(dice.choice(replicas).owner.pid, signal.SIGKILL)
        await until(lambda: len(both.members) < 2)
    answers = await asyncio.gather(*streams)
    assert [tokens for tokens, _ in answers] == [expected(prompt) for prompt in prompts]
    assert max(pause for _, pause in answers) < 2.0


async def test_streams_go_on_elsewhere_when_an_engine_hangs(both: ReplicaSet, replicas: list[LocalReplica]) -> None:
    prompts = [[100], [101]]
    streams = [asyncio.create_task(answer(both.submit(a_request(prompt)))) for prompt in prompts]
    await asyncio.sleep(0.1)
    os.kill(replicas[0].owner.pid, signal.SIGSTOP)
    assert [tokens for tokens, _ in await asyncio.gather(*streams)] == [expected(prompt) for prompt in prompts]
    await until(lambda: len(both.members) == 2)


@pytest.mark.parametrize("poison", [DIES, HANGS])
async def test_threat_18_a_request_that_crashes_every_replica_fails_and_others_do_not(
    both: ReplicaSet, poison: int
) -> None:
    losses: list[str] = []

    class Listener(ReplicaListener):
        @override
        def on_loss(self, replica: str, request_ids: object) -> None:
            losses.append(replica)

        @override
        def on_capacity(self, config: EngineConfig, num_replicas: int) -> None:
            assert config.num_blocks == 64 * num_replicas

    both.listener = Listener()
    prompts = [[100 + index] for index in range(3)]
    streams = [asyncio.create_task(answer(both.submit(a_request(prompt)))) for prompt in prompts]
    await asyncio.sleep(0.05)
    with pytest.raises(AssertionError, match="crashed 5 times in a row"):
        await answer(both.submit(a_request([poison])))
    assert [tokens for tokens, _ in await asyncio.gather(*streams)] == [expected(prompt) for prompt in prompts]
    assert len(losses) == 5
