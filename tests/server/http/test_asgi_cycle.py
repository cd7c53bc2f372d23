"""AsgiCycle: complete, too long, truncated and unread responses."""

import asyncio

import pytest

from tests.support.answering_app import Answering, exchange, served, until


@pytest.fixture
def app() -> Answering:
    return Answering()


async def test_100_continue_is_sent_only_when_the_application_reads_the_body(app: Answering) -> None:
    head = b"POST /%s HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n"
    async with served(app) as (_, port):
        early = await exchange(port, head % b"early")
        assert early.startswith(b"HTTP/1.1 200 ")
        assert b"\r\nconnection: close\r\n" in early
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head % b"echo")
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"hello")
        assert (await reader.readuntil(b"hello")).startswith(b"HTTP/1.1 200 ")
        writer.write(head % b"echo" + b"hello")  # sent unasked: nothing to ask for
        assert (await reader.readuntil(b"hello")).startswith(b"HTTP/1.1 200 ")
        writer.close()


async def test_a_truncated_response_is_an_error_for_the_client(app: Answering) -> None:
    async with served(app) as (_, port):
        answer = await exchange(port, b"GET /broken HTTP/1.1\r\nhost: x\r\n\r\n")
        assert answer.endswith(b"\r\n\r\n4\r\nhalf\r\n")  # without the last chunk
        with pytest.raises(ConnectionResetError):
            await exchange(port, b"GET /broken HTTP/1.0\r\n\r\n")


@pytest.mark.parametrize("path", [b"wrong", b"splitting", b"short"])
async def test_an_application_that_fails_before_its_response_gets_a_500(app: Answering, path: bytes) -> None:
    async with served(app) as (_, port):
        answer = await exchange(port, b"GET /%s HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n" % path)
    assert answer.startswith(b"HTTP/1.1 500 ")
    assert b"x-c" not in answer
    assert answer.count(b"\r\nconnection: close\r\n") == 1


async def test_a_response_longer_than_its_content_length_is_truncated(app: Answering) -> None:
    async with served(app) as (_, port):
        answer = await exchange(port, b"GET /long HTTP/1.1\r\nhost: x\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.endswith(b"\r\ncontent-length: 2\r\n\r\na")


async def test_threat_9_a_client_that_does_not_read_pauses_the_application(app: Answering) -> None:
    async with served(app) as (server, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        reader._transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(b"GET /endless HTTP/1.1\r\nhost: x\r\n\r\n")
        await until(lambda: app.events != [])
        while True:
            before = app.events
            await asyncio.sleep(0.2)
            if app.events == before:
                break
        assert int(before[0].removeprefix("sent ")) < 50_000
        writer.transport.abort()
        await until(lambda: not server.server_state.connections)
