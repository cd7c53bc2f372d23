"""Connections that bring no request, or only the beginning of one."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from server.http_protocol import HttpProtocol

HEAD_SECONDS = 0.3


class ImpatientProtocol(HttpProtocol):
    head_seconds = HEAD_SECONDS


async def hello(scope: Scope, receive: Receive, send: Send) -> None:
    assert scope["type"] == "http"
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]})
    await send({"type": "http.response.body", "body": b"hello"})


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


async def read_to_end(reader: asyncio.StreamReader) -> bytes:
    return await asyncio.wait_for(reader.read(), 5)


async def test_threat_8_a_connection_that_brings_nothing_is_closed(port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    began = asyncio.get_running_loop().time()
    assert await read_to_end(reader) == b""
    assert HEAD_SECONDS * 0.9 < asyncio.get_running_loop().time() - began < HEAD_SECONDS + 1
    writer.close()


@pytest.mark.parametrize("first", [b"GET /a", b"GET / HTTP/1.1\r\nhost: x\r\nx-long: a"])
async def test_threat_8_a_head_that_trickles_is_408(port: int, first: bytes) -> None:
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


async def test_a_second_request_has_its_own_time_and_an_idle_pause_before_it(port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    request = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"
    for pause_seconds in (0.0, 2 * HEAD_SECONDS, 0.0):
        await asyncio.sleep(pause_seconds)
        for part in (request[:9], request[9:]):
            writer.write(part)
            await asyncio.sleep(HEAD_SECONDS / 3)
        assert (await asyncio.wait_for(reader.readuntil(b"hello"), 5)).startswith(b"HTTP/1.1 200 ")
    writer.write(request[:9])
    assert (await read_to_end(reader)).startswith(b"HTTP/1.1 408 ")
    writer.close()


async def test_a_body_may_take_longer_than_a_head(port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\n\r\n")
    for _ in range(3):
        await asyncio.sleep(HEAD_SECONDS)
        writer.write(b"a")
    assert (await asyncio.wait_for(reader.readuntil(b"hello"), 5)).startswith(b"HTTP/1.1 200 ")
    writer.close()
