"""SocketReplica and ReplicaServer: messages between machines, here through loopback."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from caravan.model.sampling.sampling_params import SamplingParams
from caravan.scheduler.messages import Request, SequenceOutput, StartEngine, StepOutput, StepStats
from caravan.server.replicas import engine_owner, replica_server
from caravan.server.replicas.engine_owner import EngineOwner
from caravan.server.replicas.replica import ReplicaLost
from caravan.server.replicas.replica_server import ReplicaAddress, ReplicaServer
from caravan.server.replicas.replica_set import ReplicaSet
from caravan.server.replicas.socket_replica import SocketReplica
from tests.support.fake_process import FakeProcess
from tests.support.waiting import until


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> list[FakeProcess]:
    monkeypatch.setattr(engine_owner, "FIRST_PAUSE_SECONDS", 0.005)
    return FakeProcess.used_by(engine_owner, monkeypatch)


@pytest.fixture
async def owner(processes: list[FakeProcess]) -> AsyncIterator[EngineOwner]:
    owner = EngineOwner(StartEngine(model_path="m"), hang_seconds=60)
    task = asyncio.create_task(owner.run())
    yield owner
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
async def address(owner: EngineOwner) -> AsyncIterator[ReplicaAddress]:
    server = ReplicaServer(owner)
    yield await server.start("127.0.0.1")
    await server.stop()


@pytest.fixture
async def replicas(address: ReplicaAddress) -> AsyncIterator[ReplicaSet]:
    async def locate() -> ReplicaAddress:
        return address

    replicas = ReplicaSet(hang_seconds=60)
    replicas.add(SocketReplica("one", locate))
    await replicas.ready(10)
    yield replicas
    await replicas.stop()


def a_request() -> Request:
    return Request(prompt_token_ids=[1, 2], params=SamplingParams(max_tokens=8, seed=1))


async def test_requests_and_outputs_pass_through_the_socket(replicas: ReplicaSet, processes: list[FakeProcess]) -> None:
    queue = replicas.submit(a_request())
    await until(lambda: any(isinstance(sent, Request) for sent in processes[0].sent))
    output = SequenceOutput(request_id=1, token_ids=[7], finish_reason="length")
    processes[0].say(StepOutput(outputs=[output], stats=StepStats()))
    await until(lambda: replicas.num_requests == 0)
    assert (queue.take() or output).token_ids == [7]


async def test_the_end_of_an_engine_ends_the_connection_and_the_next_engine_gets_the_requests(
    replicas: ReplicaSet, processes: list[FakeProcess]
) -> None:
    replicas.submit(a_request())
    await until(lambda: any(isinstance(sent, Request) for sent in processes[0].sent))
    processes[0].kill()
    await until(lambda: len(processes) == 2 and any(isinstance(sent, Request) for sent in processes[1].sent))


async def test_a_client_that_leaves_ends_its_requests(
    replicas: ReplicaSet, owner: EngineOwner, processes: list[FakeProcess]
) -> None:
    replicas.submit(a_request())
    await until(lambda: owner.num_requests == 1)
    await replicas.stop()
    await until(lambda: owner.num_requests == 0)


@pytest.mark.parametrize("hello", [b"x" * 48, b"x", b""])
async def test_threat_36_a_client_without_the_secret_gets_nothing(
    address: ReplicaAddress, monkeypatch: pytest.MonkeyPatch, hello: bytes
) -> None:
    monkeypatch.setattr(replica_server, "HELLO_SECONDS", 0.1)
    reader, writer = await asyncio.open_connection(address.host, address.port)
    writer.write(hello)
    assert await asyncio.wait_for(reader.read(), 60) == b""
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize("frame", [b"\xff\xff\xff\xff", b"\x02\x00\x00\x00\xff\xff"])
async def test_a_client_that_sends_no_messages_is_left(address: ReplicaAddress, frame: bytes) -> None:
    reader, writer = await asyncio.open_connection(address.host, address.port)
    writer.write(address.secret + b"0123456789abcdef")
    assert await asyncio.wait_for(reader.read(4), 60)
    writer.write(frame)
    await asyncio.wait_for(reader.read(), 60)
    writer.close()
    await writer.wait_closed()


async def test_a_replica_that_does_not_listen_is_lost(address: ReplicaAddress) -> None:
    async def locate() -> ReplicaAddress:
        return ReplicaAddress("127.0.0.1", 9, b"")

    replica = SocketReplica("one", locate)
    with pytest.raises(ReplicaLost, match="cannot connect"):
        await anext(replica.messages("0123456789abcdef"))
    with pytest.raises(ReplicaLost, match="the connection has ended"):
        await replica.send("0123456789abcdef", b"")


async def test_damaged_frames_lose_the_replica() -> None:
    async def damage(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"\xff\xff\xff\xff")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(damage, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]

    async def locate() -> ReplicaAddress:
        return ReplicaAddress("127.0.0.1", port, b"x" * 32)

    with pytest.raises(ReplicaLost, match="the connection ended: ValueError"):
        await anext(SocketReplica("one", locate).messages("0123456789abcdef"))
    server.close()
    await server.wait_closed()
