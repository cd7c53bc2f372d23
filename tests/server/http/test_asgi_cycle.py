"""AsgiCycle: complete, too long, truncated and unread responses."""

import asyncio
from collections.abc import AsyncGenerator

import pytest
from starlette.types import Message

from caravan.server.http.asgi_cycle import SCOPE_WRITE_BODY, AsgiCycle
from caravan.server.http.sse import EventStream
from tests.support.answering_app import Answering, exchange, served
from tests.support.waiting import until


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


async def test_an_encoded_path_reaches_the_application_decoded(app: Answering) -> None:
    async with served(app) as (_, port):
        answer = await exchange(port, b"GET /%65%61rly HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    assert answer.endswith(b"\r\n\r\nno")


async def test_a_broken_body_of_a_running_request_disconnects_it(app: Answering) -> None:
    head = b"POST /slow HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
    async with served(app) as (_, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head + b"1\r\na\r\n")
        await asyncio.sleep(0.05)
        writer.write(b"no length\r\n")
        assert (await asyncio.wait_for(reader.read(), 60)).startswith(b"HTTP/1.1 400 ")
        await until(lambda: app.events == ["gone"])
        writer.close()


class Connection:
    """A connection that keeps what is written."""

    def __init__(self) -> None:
        self.is_write_paused = False
        self.written = b""
        self.num_ended = 0
        self.is_aborted = False

    def write(self, data: bytes) -> None:
        self.written += data

    async def drain(self) -> None:
        self.is_write_paused = False

    def resume_reading(self) -> None:
        pass

    def abort(self, *, is_reset: bool = False) -> None:
        self.is_aborted = True

    def end_response(self) -> None:
        self.num_ended += 1


def cycle_of(connection: Connection, method: str = "GET") -> AsgiCycle:
    cycle = AsgiCycle(
        connection, {"method": method, "http_version": "1.1"}, [], keeps_alive=True, expects_continue=False
    )
    cycle.feed(b"", is_last=True)
    return cycle


def starts(status: int, *headers: tuple[bytes, bytes]) -> Message:
    return {"type": "http.response.start", "status": status, "headers": headers}


BODY: Message = {"type": "http.response.body", "body": b"ok"}


async def test_messages_out_of_order_are_errors_of_the_application() -> None:
    connection = Connection()
    cycle = cycle_of(connection)
    with pytest.raises(RuntimeError, match=r"Expected http\.response\.start, got http\.response\.body"):
        await cycle.send(BODY)
    await cycle.send(starts(200))
    with pytest.raises(RuntimeError, match=r"Expected a body, got http\.response\.start"):
        await cycle.send(starts(200))
    await cycle.send(BODY)
    with pytest.raises(RuntimeError, match="Expected nothing"):
        await cycle.send(BODY)
    assert connection.written.endswith(b"transfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n")
    assert connection.num_ended == 1


async def test_an_application_may_not_frame_its_response_itself() -> None:
    connection = Connection()
    with pytest.raises(RuntimeError, match="must not set Transfer-Encoding"):
        await cycle_of(connection).send(starts(200, (b"Transfer-Encoding", b"chunked")))
    assert not connection.written


@pytest.mark.parametrize(("method", "status"), [("HEAD", 200), ("GET", 204), ("GET", 304)])
async def test_a_response_without_a_body_has_none(method: str, status: int) -> None:
    connection = Connection()
    cycle = cycle_of(connection, method)
    await cycle.send(starts(status))
    await asyncio.sleep(0)
    assert connection.written.endswith(b"\r\n\r\n")  # the head is not kept until the body comes
    await cycle.send(BODY)
    assert connection.written.endswith(b"\r\n\r\n")
    assert cycle.is_complete


async def test_an_unknown_status_has_no_phrase() -> None:
    connection = Connection()
    cycle_of(connection).respond(599, [], b"")
    assert connection.written.startswith(b"HTTP/1.1 599 \r\n")


async def test_output_after_a_disconnect_is_dropped() -> None:
    connection = Connection()
    cycle = cycle_of(connection)
    cycle.disconnect()
    cycle.send_ahead()
    await cycle.send(starts(200))
    assert await cycle.receive() == {"type": "http.disconnect"}
    assert not connection.written


async def test_a_part_of_a_body_is_written_at_once_unless_it_has_to_wait() -> None:
    connection = Connection()
    cycle = cycle_of(connection)
    assert not cycle.write_body(b"early")  # before the head
    await cycle.send(starts(200))
    connection.is_write_paused = True
    assert not cycle.write_body(b"late")
    connection.is_write_paused = False
    assert cycle.write_body(b"one")
    await cycle.send({**BODY, "more_body": True})
    assert cycle.write_body(b"two")
    await cycle.send({"type": "http.response.body"})
    assert not cycle.write_body(b"after the end")
    assert connection.written.partition(b"\r\n\r\n")[2] == b"3\r\none\r\n2\r\nok\r\n3\r\ntwo\r\n0\r\n\r\n"


async def test_a_part_of_a_body_is_dropped_after_a_disconnect() -> None:
    connection = Connection()
    cycle = cycle_of(connection)
    await cycle.send(starts(200))
    cycle.disconnect()
    assert cycle.write_body(b"one")
    assert not connection.written


async def test_a_stream_writes_its_events_past_the_middleware() -> None:
    written: list[bytes] = []

    def write_body(body: bytes) -> bool:
        written.append(body)
        return True

    async def events() -> AsyncGenerator[bytes, None]:
        yield b"data: 1\n\n"
        yield b"data: 2\n\n"

    async def receive() -> Message:
        return await asyncio.get_running_loop().create_future()

    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    stream = EventStream(events(), write_timeout_seconds=9, on_end=lambda: None)
    await stream({"type": "http", SCOPE_WRITE_BODY: write_body}, receive, send)
    assert written == [b"data: 1\n\n", b"data: 2\n\n"]
    assert [message.get("body") for message in sent] == [None, b""]
