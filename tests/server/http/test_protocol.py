"""HttpProtocol: connections with no request, a partial one or several, and clients that leave or wait."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator

import pytest
import uvicorn

from caravan.server.http.protocol import HttpProtocol
from tests.support.answering_app import REQUEST, Answering, exchange, read_to_end, served
from tests.support.hello_app import hello
from tests.support.waiting import until

HEAD_SECONDS = 0.3


class ImpatientProtocol(HttpProtocol):
    head_seconds = HEAD_SECONDS


@pytest.fixture
async def port() -> AsyncIterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        config = uvicorn.Config(hello, http=ImpatientProtocol, lifespan="off", log_config=None, timeout_keep_alive=2)
        server = uvicorn.Server(config)
        task = asyncio.create_task(server._serve([listener]))
        yield listener.getsockname()[1]
        server.should_exit = True
        await task


async def test_threat_8_an_idle_new_connection_is_closed(port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    began = asyncio.get_running_loop().time()
    assert await read_to_end(reader) == b""
    assert HEAD_SECONDS * 0.9 < asyncio.get_running_loop().time() - began < HEAD_SECONDS + 1
    writer.close()


@pytest.mark.parametrize("first", [b"GET /a", b"GET / HTTP/1.1\r\nhost: x\r\nx-long: a"])
async def test_threat_8_a_slow_head_gets_408(port: int, first: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(first)
    ended = asyncio.create_task(read_to_end(reader))
    while not ended.done():
        writer.write(b"a")
        await asyncio.sleep(0.05)
    answer = await ended
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["type"] == "invalid_request_error"
    writer.close()


@pytest.mark.slow
async def test_a_second_request_has_its_own_head_timeout_after_an_idle_pause(port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    request = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"
    for pause_seconds in (0.0, 2 * HEAD_SECONDS, 0.0):
        await asyncio.sleep(pause_seconds)
        for part in (request[:9], request[9:]):
            writer.write(part)
            await asyncio.sleep(HEAD_SECONDS / 3)
        assert (await asyncio.wait_for(reader.readuntil(b"hello"), 60)).startswith(b"HTTP/1.1 200 ")
    writer.write(request[:9])
    assert (await read_to_end(reader)).startswith(b"HTTP/1.1 408 ")
    writer.close()


@pytest.mark.slow
async def test_a_body_may_take_longer_than_a_head(port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\n\r\n")
    for _ in range(3):
        await asyncio.sleep(HEAD_SECONDS)
        writer.write(b"a")
    assert (await asyncio.wait_for(reader.readuntil(b"hello"), 60)).startswith(b"HTTP/1.1 200 ")
    writer.close()


@pytest.fixture
def app() -> Answering:
    return Answering()


async def test_a_response_before_the_end_of_the_request_is_delivered_and_closes_the_connection(
    app: Answering,
) -> None:
    num_bytes = 8 * 2**20
    head = b"POST /early HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % num_bytes
    async with served(app) as (server, port):
        for body in (b"a" * num_bytes, b"a" * 1000 + b"GET /echo HTTP/1.1\r\nhost: x\r\n\r\n"):
            answer = await exchange(port, head + body)
            assert answer.count(b"HTTP/1.1 ") == 1
            assert answer.endswith(b"\r\nconnection: close\r\n\r\nno")
        await until(lambda: not server.server_state.connections)


async def pour(writer: asyncio.StreamWriter) -> None:
    for _ in range(100):
        writer.write(b"a" * 2**20)
        await writer.drain()


async def test_threat_8_data_after_an_early_response_is_limited(app: Answering) -> None:
    head = b"POST /early HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % 2**40
    async with served(app) as (server, port):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head)
        with pytest.raises(ConnectionError):
            await pour(writer)
        await until(lambda: not server.server_state.connections)
        writer.close()


async def test_a_pipelined_request_waits_for_the_previous_response(app: Answering) -> None:
    async with served(app) as (_, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(REQUEST % b"slow" + REQUEST % b"echo" + b"\r\n" + (REQUEST % b"echo")[:30])
        await asyncio.sleep(0.05)
        app.may_go_on.set()
        assert (await reader.readuntil(b"ok")).count(b"HTTP/1.1 ") == 1
        assert (await reader.readuntil(b"hello")).count(b"HTTP/1.1 ") == 1
        writer.write((REQUEST % b"echo")[30:])
        assert (await reader.readuntil(b"hello")).count(b"HTTP/1.1 ") == 1
        writer.close()


async def test_threat_8_the_buffer_of_pipelined_requests_is_limited(app: Answering) -> None:
    async with served(app) as (server, port):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(REQUEST % b"slow")
        writer.write((REQUEST % b"echo") * 400_000)  # 25 MB
        await asyncio.sleep(0.5)
        (connection,) = server.server_state.connections
        assert isinstance(connection, HttpProtocol)
        assert connection._reader.num_buffered < 2**20
        writer.transport.abort()
        app.may_go_on.set()
        await until(lambda: not server.server_state.connections)


async def test_threat_8_pipelined_requests_are_read_no_faster_than_they_are_handled(app: Answering) -> None:
    async with served(app) as (server, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write((REQUEST % b"soon") * 400_000)  # 25 MB
        (connection,) = await connections_of(server)
        most = 0
        for _ in range(300):
            await reader.readuntil(b"hello")
            most = max(most, connection._reader.num_buffered)
        assert most < 2**20
        writer.transport.abort()
        await until(lambda: not server.server_state.connections)


async def connections_of(server: uvicorn.Server) -> list[HttpProtocol]:
    await until(lambda: bool(server.server_state.connections))
    return [connection for connection in server.server_state.connections if isinstance(connection, HttpProtocol)]


LARGE = b"POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % 2**24 + b"a" * 2**24


async def test_a_client_that_does_not_read_is_disconnected(app: Answering, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HttpProtocol, "stall_seconds", 0.3)
    async with served(app) as (server, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        reader._transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(LARGE + REQUEST % b"echo")
        await connections_of(server)
        await until(lambda: not server.server_state.connections)
        writer.close()


@pytest.mark.slow
async def test_a_slow_client_gets_the_whole_last_response(app: Answering, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HttpProtocol, "flush_seconds", 0.3)
    async with served(app) as (_, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**20)
        writer.write(LARGE.replace(b"host: x", b"host: x\r\nconnection: close"))
        num_bytes = 0
        while part := await asyncio.wait_for(reader.read(2**20), 60):
            num_bytes += len(part)
            await asyncio.sleep(0.1)
        assert num_bytes > 2**24
        writer.close()


@pytest.mark.slow
async def test_an_idle_connection_is_closed_silently_after_the_keep_alive_timeout(app: Answering) -> None:
    async with served(app, timeout_keep_alive=1) as (_, port):
        began = asyncio.get_running_loop().time()
        answer = await exchange(port, REQUEST % b"echo" + b"\r\n")  # an old client's line end is no request
        assert answer.endswith(b"\r\n\r\nhello")
        assert 0.9 < asyncio.get_running_loop().time() - began < 2


async def test_a_shutdown_completes_responses_and_closes_idle_connections(app: Answering) -> None:
    async with served(app) as (server, port):
        idle, idle_writer = await asyncio.open_connection("127.0.0.1", port)
        busy, busy_writer = await asyncio.open_connection("127.0.0.1", port)
        busy_writer.write(REQUEST % b"slow")
        idle_writer.write(REQUEST % b"echo")
        await idle.readuntil(b"hello")
        await asyncio.sleep(0.05)
        for connection in list(server.server_state.connections):
            connection.shutdown()
        assert await read_to_end(idle) == b""
        app.may_go_on.set()
        assert (await read_to_end(busy)).endswith(b"\r\nconnection: close\r\n\r\nok")
        idle_writer.close()
        busy_writer.close()
