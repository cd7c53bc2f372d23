"""ReplicaSet with replicas that the test plays: routing, losses, quarantine, draining."""

import asyncio
from collections.abc import AsyncIterator, Collection

import msgspec
import pytest
from typing_extensions import override

from caravan.model.sampling.sampling_params import SamplingParams
from caravan.scheduler.config import EngineConfig
from caravan.scheduler.messages import (
    BatchBegins,
    EngineLog,
    Heartbeat,
    Request,
    SequenceOutput,
    StepOutput,
    StepStats,
    Subscribe,
)
from caravan.server.engine.in_flight import GIVEN_UP
from caravan.server.engine.output_queue import EngineDied, EngineUnavailable, OutputQueue
from caravan.server.engine.process import EngineStartFailed
from caravan.server.replicas import replica_set
from caravan.server.replicas.replica import Draining
from caravan.server.replicas.replica_listener import ReplicaListener
from caravan.server.replicas.replica_set import ReplicaSet
from tests.support.engine_reports import READY
from tests.support.local_replica import FakeReplica
from tests.support.waiting import until

BLOCK = READY.config.block_size


class Events(ReplicaListener):
    def __init__(self) -> None:
        self.routes: list[tuple[int, str, int]] = []
        self.losses: list[tuple[str, list[int]]] = []
        self.capacities: list[tuple[int, int]] = []
        self.num_disconnects = 0
        self.totals: list[StepStats] = []

    @override
    def on_step(self, output: StepOutput, total: StepOutput) -> None:
        self.totals.append(total.stats)

    @override
    def on_route(self, request_id: int, replica: str, num_known_tokens: int) -> None:
        self.routes.append((request_id, replica, num_known_tokens))

    @override
    def on_loss(self, replica: str, request_ids: Collection[int]) -> None:
        self.losses.append((replica, [*request_ids]))

    @override
    def on_capacity(self, config: EngineConfig, num_replicas: int) -> None:
        self.capacities.append((config.num_blocks, num_replicas))

    @override
    def on_disconnect(self) -> None:
        self.num_disconnects += 1


@pytest.fixture
async def replicas() -> AsyncIterator[ReplicaSet]:
    replicas = ReplicaSet(hang_seconds=60)
    replicas.listener = Events()
    yield replicas
    await replicas.stop()


async def connected(replicas: ReplicaSet, *names: str) -> list[FakeReplica]:
    fakes = [FakeReplica(name) for name in names]
    for fake in fakes:
        replicas.add(fake)
    await until(lambda: replicas.members.keys() >= {*names})
    return fakes


def ask(replicas: ReplicaSet, prompt: list[int], group: int = 0, max_tokens: int = 8) -> OutputQueue:
    return replicas.submit(
        Request(prompt_token_ids=prompt, params=SamplingParams(max_tokens=max_tokens, seed=1)), group
    )


def events(replicas: ReplicaSet) -> Events:
    assert isinstance(replicas.listener, Events)
    return replicas.listener


def taken(queue: OutputQueue) -> list[int]:
    """Return the tokens that have arrived."""
    output = queue.take()
    return [] if output is None else output.token_ids


async def output_of(queue: OutputQueue) -> SequenceOutput:
    async with asyncio.timeout(60):
        while (output := queue.take()) is None:
            await asyncio.sleep(0.005)
    return output


async def test_requests_go_to_the_replica_with_the_fewest(replicas: ReplicaSet) -> None:
    one, two = await connected(replicas, "one", "two")
    for number in range(6):
        ask(replicas, [number])
    await until(lambda: len(one.requests) + len(two.requests) == 6)
    assert len(one.requests) == len(two.requests) == 3


async def test_a_known_prefix_decides_until_its_replica_is_much_busier(replicas: ReplicaSet) -> None:
    await connected(replicas, "one", "two")
    prefix = [*range(3 * BLOCK)]
    for number in range(8):
        ask(replicas, [*prefix, number])
    (_, first, known), *others = events(replicas).routes
    assert known == 0
    near = [(replica, tokens) for _, replica, tokens in others if replica == first]
    assert near[:4] == [(first, 3 * BLOCK)] * 4
    assert {replica for _, replica, _ in others} == {"one", "two"}


async def test_the_end_of_an_answer_is_a_known_prefix_of_the_next_prompt(replicas: ReplicaSet) -> None:
    one, two = await connected(replicas, "one", "two")
    queue = ask(replicas, [*range(BLOCK)], max_tokens=BLOCK + 1)
    await until(lambda: len(one.requests) + len(two.requests) == 1)
    fake = one if one.requests else two
    answer = [*range(100, 101 + BLOCK)]
    fake.give(queue.request_id, *answer, ends=True)
    assert (await output_of(queue)).token_ids == answer
    ask(replicas, [*range(BLOCK), *answer, 7])
    assert events(replicas).routes[-1] == (2, fake.name, 2 * BLOCK)


async def test_the_requests_of_a_lost_replica_go_on_elsewhere_after_their_last_token(replicas: ReplicaSet) -> None:
    one, two = await connected(replicas, "one", "two")
    queues = [ask(replicas, [number]) for number in (50, 60)]
    await until(lambda: len(one.requests) == len(two.requests) == 1)
    (lost_id,) = one.requests
    queue = queues[lost_id - 1]
    one.give(lost_id, 5, 6)
    assert (await output_of(queue)).token_ids == [5, 6]
    one.die()
    await until(lambda: len(two.requests) == 2)
    assert two.requests[lost_id].output_token_ids == [5, 6]
    assert events(replicas).losses == [("one", [lost_id])]
    two.give(lost_id, 7, ends=True)
    assert (await output_of(queue)).token_ids == [7]
    await until(lambda: one.num_connections == 2)  # it is used again when its engine is back
    await until(lambda: "one" in replicas.members)
    assert events(replicas).capacities == [(64, 1), (128, 2), (64, 1), (128, 2)]


async def test_a_call_that_fails_loses_the_replica_and_no_request(replicas: ReplicaSet) -> None:
    one, two = await connected(replicas, "one", "two")
    one.is_failing = two.is_failing = True
    queue = ask(replicas, [1])
    await until(lambda: len(replicas.members) < 2)
    one.is_failing = two.is_failing = False
    await until(lambda: len(one.requests) + len(two.requests) == 1)
    (one if one.requests else two).give(queue.request_id, 9, ends=True)
    assert (await output_of(queue)).token_ids == [9]


async def test_requests_wait_while_there_is_no_replica_also_those_that_come_meanwhile(replicas: ReplicaSet) -> None:
    (one,) = await connected(replicas, "one")
    queue = ask(replicas, [1])
    await until(lambda: bool(one.requests))
    one.die()
    await until(lambda: not replicas.is_ready)
    states: list[str] = [replicas.state]
    assert events(replicas).num_disconnects == 1
    late = ask(replicas, [2])
    await until(lambda: replicas.is_ready and {queue.request_id, late.request_id} <= one.requests.keys())
    assert [*states, replicas.state] == ["replacing", "loaded"]
    assert replicas.start_seconds() == 0


async def test_requests_fail_if_no_replica_comes_back(replicas: ReplicaSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replica_set, "MAX_DOWN_SECONDS", 0.0)
    await connected(replicas, "one")
    queue = ask(replicas, [1])
    replicas.remove("one")
    with pytest.raises(EngineDied):
        await output_of(queue)
    with pytest.raises(EngineUnavailable):
        ask(replicas, [2])
    assert replicas.names == []


async def test_the_time_until_a_replica_is_back_is_that_of_a_load(replicas: ReplicaSet) -> None:
    await connected(replicas, "one")
    assert replicas.start_seconds() == 0
    assert replicas.report is not None
    replicas.report = msgspec.structs.replace(replicas.report, load_seconds=4000.0)
    replicas.remove("one")
    assert 3000 < replicas.start_seconds() <= 4000


async def test_an_aborted_request_is_aborted_where_it_runs(replicas: ReplicaSet) -> None:
    one, two = await connected(replicas, "one", "two")
    queue = ask(replicas, [1])
    await until(lambda: len(one.requests) + len(two.requests) == 1)
    queue.abort()
    await until(lambda: not one.requests and not two.requests)
    assert replicas.num_requests == 0


async def test_outputs_of_aborted_requests_are_ignored(replicas: ReplicaSet) -> None:
    (one,) = await connected(replicas, "one")
    kept, dropped = ask(replicas, [1]), ask(replicas, [2])
    await until(lambda: len(one.requests) == 2)
    dropped.abort()
    one.give(dropped.request_id, 1)
    one.give(kept.request_id, 2)
    assert (await output_of(kept)).token_ids == [2]
    assert taken(dropped) == []


async def test_a_silent_replica_gets_no_requests_and_is_left_later(replicas: ReplicaSet) -> None:
    one, two = await connected(replicas, "one", "two")
    replicas.members["one"].silence.excuse(-5.0)
    for number in range(2):
        ask(replicas, [number])
    await until(lambda: len(two.requests) == 2)
    replicas.members["one"].silence.excuse(-100.0)
    await until(lambda: one.num_connections == 2)
    one.say(Heartbeat())


async def test_a_draining_replica_finishes_its_requests_and_gets_no_others(replicas: ReplicaSet) -> None:
    one, two = await connected(replicas, "one", "two")
    queues = [ask(replicas, [number]) for number in (1, 2)]
    await until(lambda: len(one.requests) == len(two.requests) == 1)
    one.say(Draining())
    await until(lambda: replicas.members["one"].is_draining)
    ask(replicas, [3])
    ask(replicas, [4])
    await until(lambda: len(two.requests) == 3)
    (old,) = one.requests
    one.give(old, 9, ends=True)
    assert (await output_of(queues[old - 1])).token_ids == [9]


async def test_threat_18_a_request_that_crashes_each_replica_fails_and_others_do_not(replicas: ReplicaSet) -> None:
    one, two = await connected(replicas, "one", "two")
    poison = ask(replicas, [1])
    others = [ask(replicas, [number]) for number in (2, 3, 4)]
    num_crashes = 0
    async with asyncio.timeout(60):
        while replicas._requests.is_quarantined(-1) or num_crashes < 5:
            for fake in (one, two):
                if poison.request_id in fake.requests and fake.name in replicas.members:
                    if num_crashes >= 2:
                        assert [*fake.requests] == [poison.request_id], "a quarantined request runs alone"
                    fake.say(BatchBegins(request_ids=[*fake.requests]))
                    num_crashes += 1
                    fake.die()
                else:
                    for request_id in [*fake.requests]:
                        fake.give(request_id, 9, ends=True)
            await asyncio.sleep(0.01)
    failed = await output_of(poison)
    assert (failed.finish_reason, failed.error) == ("error", GIVEN_UP)
    assert num_crashes == 5
    for other in others:
        await until(lambda other=other: bool(one.requests or two.requests) or other.take() is not None)


async def test_a_quarantined_request_that_gets_a_token_frees_its_replica(replicas: ReplicaSet) -> None:
    (one,) = await connected(replicas, "one")
    quarantined = ask(replicas, [1])
    for _ in range(2):
        await until(lambda: quarantined.request_id in one.requests)
        one.say(BatchBegins(request_ids=[quarantined.request_id]))
        one.die()
        await until(lambda: not replicas.is_ready)
        await until(lambda: replicas.is_ready)
    await until(lambda: quarantined.request_id in one.requests)
    waiting = ask(replicas, [2])
    await asyncio.sleep(0.05)
    assert waiting.request_id not in one.requests
    one.give(quarantined.request_id, 5)
    await until(lambda: waiting.request_id in one.requests)


async def test_the_choices_of_a_failed_request_are_aborted_on_all_replicas(replicas: ReplicaSet) -> None:
    one, two = await connected(replicas, "one", "two")
    choices = [ask(replicas, [number], group=77) for number in (1, 2)]
    await until(lambda: len(one.requests) == len(two.requests) == 1)
    for _ in range(4):
        replicas._requests._groups[77].count_crash({1, 2})
    one.say(BatchBegins(request_ids=[*one.requests]))
    one.die()
    await until(lambda: not two.requests)
    assert [(await output_of(choice)).finish_reason for choice in choices] == ["error", "error"]


async def test_a_replica_with_another_model_is_not_used(replicas: ReplicaSet, caplog: pytest.LogCaptureFixture) -> None:
    await connected(replicas, "one")
    other = FakeReplica("two", msgspec.structs.replace(READY, vocab_size=7))
    replicas.add(other)
    await until(lambda: other.num_connections == 2)
    assert [*replicas.members] == ["one"]
    assert caplog.messages == ["Replica two is not used: its vocabulary is 7, but that of the first replica is 1024."]


async def test_sums_and_logs_come_from_all_replicas(replicas: ReplicaSet, caplog: pytest.LogCaptureFixture) -> None:
    one, two = await connected(replicas, "one", "two")
    for fake, num_running in ((one, 3), (two, 4)):
        fake.say(StepOutput(outputs=[], stats=StepStats(num_blocks=64, num_running=num_running, num_decode_tokens=1)))
    await until(lambda: len(events(replicas).totals) == 2)
    total = events(replicas).totals[-1]
    assert (total.num_running, total.num_blocks, total.step, total.num_decode_tokens) == (7, 128, 2, 1)
    assert replicas.config().num_blocks == 128
    two.say(EngineLog(level=30, text="low on memory"))
    await until(lambda: caplog.messages == ["two: low on memory"])


async def test_subscriptions_reach_replicas_that_come_later(replicas: ReplicaSet) -> None:
    (one,) = await connected(replicas, "one")
    replicas.subscribe(0.25)
    (two,) = await connected(replicas, "two")
    await until(lambda: Subscribe(period_seconds=0.25) in one.sent and Subscribe(period_seconds=0.25) in two.sent)


async def test_a_start_without_a_replica_fails_after_a_time() -> None:
    replicas = ReplicaSet()
    with pytest.raises(EngineStartFailed, match="No replica has loaded the model within 0 seconds."):
        await replicas.ready(0.0)
    assert not replicas.is_standby_ready()
    replicas.add(FakeReplica("one"))
    assert await replicas.ready(5.0) == READY
    await replicas.stop()
