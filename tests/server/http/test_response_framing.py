"""Each request gets one well-framed response or a closed connection, however it is sent."""

import itertools
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.running_server import RunningServer, running_server
from tests.support.strict_http import GenerationResponse, StrictClient
from tests.support.waiting import eventually

pytestmark = pytest.mark.slow

UPGRADES = {
    "no upgrade": b"",
    "h2c": b"Connection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAEAAEAAAAIAAAAA\r\nUpgrade: h2c\r\n",
    "websocket": b"Connection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n",
}
BODIES = ("at once", "later", "chunked", "expect")
NUM_TOKENS = 7
LONG = {"model": "tiny", "prompt": "hello", "max_tokens": 450, "ignore_eos": True}
LAST = b"GET /version HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


@pytest.fixture(scope="module")
def server(tiny_model_path: Path) -> Iterator[RunningServer]:
    with running_server(tiny_model_path, "--kv-cache-memory", "4MiB") as running:
        yield running


@pytest.fixture
def client(server: RunningServer) -> Iterator[StrictClient]:
    with StrictClient(int(server.url.rpartition(":")[2])) as client:
        yield client


def post(headers: bytes = b"", version: bytes = b"1.1") -> bytes:
    """Return the head of a request for text without its end."""
    head = b"POST /v1/completions HTTP/%b\r\nHost: localhost\r\nContent-Type: application/json\r\n" % version
    return head + headers


def request_body(prompt: str, **fields: object) -> bytes:
    body = {"model": "tiny", "prompt": prompt, "echo": True, "max_tokens": NUM_TOKENS, "ignore_eos": True}
    return json.dumps(body | fields).encode()


def send(client: StrictClient, head: bytes, content: bytes, how: str, version: str) -> None:
    """Send a request in one of the ways of BODIES; the body is complete when this returns."""
    length = b"Content-Length: %d\r\n" % len(content)
    if how == "at once":
        client.send(head + length + b"\r\n" + content)
    elif how == "chunked":
        parts = [content[:20], content[20:]]
        chunks = [b"%x;name=value\r\n%b\r\n" % (len(part), part) for part in parts]
        client.send(head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks[0])
        time.sleep(0.01)
        client.send(chunks[1] + b"0\r\nX-Trailer: a\r\n\r\n")
    elif how == "expect":
        client.send(head + length + b"Expect: 100-continue\r\n\r\n")
        if version == "1.1":
            client.receive_until(b"HTTP/1.1 100 Continue\r\n\r\n")
        else:
            assert client.is_silent(0.05)  # HTTP/1.0 has no interim answers
        client.send(content)
    else:
        middle = len(head) // 2
        for part in (head[:middle], head[middle:], length + b"\r\n", content[:5], content[5:]):
            client.send(part)
            time.sleep(0.01)


def check_text(answer: GenerationResponse, prompt: str, *, is_streamed: bool) -> None:
    """Check that the answer is the one to this request."""
    assert answer.status == 200, answer.body
    chunks = answer.chunks() if is_streamed else [answer.json()]
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks).startswith(prompt)
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize(
    ("upgrade", "version", "how", "is_streamed", "half_closes"),
    list(itertools.product(UPGRADES, ("1.0", "1.1"), BODIES, (False, True), (False, True))),
)
def test_threat_26_a_request_gets_exactly_one_well_framed_response(
    client: StrictClient, upgrade: str, version: str, how: str, is_streamed: bool, half_closes: bool
) -> None:
    prompt = f"{upgrade} {version} {how} {is_streamed} {half_closes}"
    head = post(UPGRADES[upgrade], version.encode())
    send(client, head, request_body(prompt, stream=is_streamed), how, version)
    if half_closes:
        client.end_half()
    answer = client.answer()
    assert answer.num_interim == (how == "expect" and version == "1.1")
    if version == "1.0" and how == "chunked":
        assert answer.status == 400  # chunks came with HTTP/1.1
        assert answer.closes
    else:
        check_text(answer, prompt, is_streamed=is_streamed)
    if version == "1.0":
        assert answer.closes
        assert "transfer-encoding" not in answer.headers
    if not (answer.closes or half_closes):
        client.send(LAST)
        last = client.answer("GET")
        assert (last.status, last.closes, [*last.json()]) == (200, True, ["version"])
    client.end()


@pytest.mark.parametrize("upgrade", UPGRADES)
@pytest.mark.parametrize("half_closes", [False, True])
def test_threat_26_pipelined_requests_are_handled_in_order(
    client: StrictClient, upgrade: str, half_closes: bool
) -> None:
    prompts = [f"{upgrade} {half_closes} {number}" for number in range(6)]
    requests = b""
    for number, prompt in enumerate(prompts):
        content = request_body(prompt, stream=number % 2 == 1)
        requests += post(UPGRADES[upgrade]) + b"Content-Length: %d\r\n\r\n" % len(content) + content
    client.send(requests + (b"" if half_closes else LAST))
    if half_closes:
        client.end_half()
    for number, prompt in enumerate(prompts):
        check_text(client.answer(), prompt, is_streamed=number % 2 == 1)
    if not half_closes:
        assert client.answer("GET").status == 200
    client.end()


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (b"Content-Length: 0\r\nContent-Length: 46\r\n", 400),
        (b"Content-Length: 46\r\nContent-Length: 46\r\n", 400),
        (b"Content-Length: 0, 46\r\n", 400),
        (b"Content-Length: +0\r\n", 400),
        (b"Content-Length : 0\r\n", 400),
        (b"Content-Length: 0\r\nTransfer-Encoding: chunked\r\n", 400),
        (b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", 400),
        (b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", 400),
        (b"Transfer-Encoding: chunked, identity\r\n", 400),
        (b"Transfer-Encoding: xchunked\r\n", 400),
        (b"Transfer-Encoding : chunked\r\n", 400),
        (b"Transfer-Encoding: gzip, chunked\r\n", 501),
        (b"X: a\r\n Transfer-Encoding: chunked\r\n", 400),
        (b"X: a\nTransfer-Encoding: chunked\r\n", 400),
        (b"X: a\rTransfer-Encoding: chunked\r\n", 400),
        (b"X: a\0Transfer-Encoding: chunked\r\n", 400),
        (b"Host: other\r\n", 400),
    ],
)
def test_threat_26_an_ambiguous_body_length_is_rejected_and_closes_the_connection(
    client: StrictClient, headers: bytes, status: int
) -> None:
    client.send(post(headers) + b"\r\n0\r\n\r\n" + LAST)
    answer = client.answer()
    assert (answer.status, answer.closes) == (status, True)
    assert answer.json()["error"]["type"] == "invalid_request_error"
    client.end()


@pytest.mark.parametrize(
    "chunks",
    [b"5\r\nhello0\r\n\r\n", b"5 \r\nhello\r\n0\r\n\r\n", b"0x5\r\nhello\r\n", b"-5\r\nhello\r\n", b"5\nhello\n0\n\n",
     b"5;a=\nb\r\nhello\r\n0\r\n\r\n", b"\r\n", b"0\r\nX : a\r\n\r\n", b"0\r\n x\r\n\r\n", b"0\r\n\n"],
)  # fmt: skip
def test_threat_26_malformed_chunks_are_rejected_and_close_the_connection(client: StrictClient, chunks: bytes) -> None:
    client.send(post(b"Transfer-Encoding: chunked\r\n\r\n") + chunks + LAST)
    answer = client.answer()
    assert (answer.status, answer.closes) == (400, True)
    client.end()


def test_threat_26_an_unread_body_is_not_parsed_as_the_next_request(client: StrictClient) -> None:
    client.send(b"POST /livez HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(LAST))
    answer = client.answer()
    assert (answer.status, answer.closes) == (405, True)
    client.send(LAST)
    client.end()


@pytest.mark.parametrize("half_closes", [False, True])
@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_threat_26_a_head_request_gets_no_body(client: StrictClient, version: str, half_closes: bool) -> None:
    client.send(b"HEAD /nothing HTTP/%b\r\nHost: localhost\r\n\r\n" % version.encode())
    if half_closes:
        client.end_half()
    answer = client.answer("HEAD")
    assert answer.status in (404, 405)
    if not (answer.closes or half_closes):
        client.send(LAST)
        assert client.answer("GET").status == 200
    client.end()


def is_idle(server: RunningServer) -> bool:
    running, waiting = server.metric("num_requests_running"), server.metric("num_requests_waiting")
    return running == waiting == server.metric("kv_cache_usage_perc") == 0


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("is_streamed", [False, True])
@pytest.mark.parametrize("waits_seconds", [0.0, 0.05])
def test_threat_11_a_client_that_half_closes_and_leaves_is_detected(
    server: RunningServer, version: str, is_streamed: bool, waits_seconds: float
) -> None:
    eventually(lambda: is_idle(server))
    before = server.metric("generation_tokens_total")
    with StrictClient(int(server.url.rpartition(":")[2])) as client:
        content = json.dumps(LONG | {"stream": is_streamed, "n": 16}).encode()
        client.send(post(b"Content-Length: %d\r\n\r\n" % len(content), version.encode()) + content)
        client.end_half()
        time.sleep(waits_seconds)
    eventually(lambda: is_idle(server))
    assert server.metric("generation_tokens_total") - before < 16 * LONG["max_tokens"]  # type: ignore[operator]


def test_a_client_that_half_closes_while_the_server_is_full_gets_its_response(server: RunningServer) -> None:
    port = int(server.url.rpartition(":")[2])
    with StrictClient(port) as first, StrictClient(port) as second:
        content = json.dumps(LONG | {"n": 64, "max_tokens": 100}).encode()
        first.send(post(b"Content-Length: %d\r\n\r\n" % len(content)) + content)
        eventually(lambda: server.metric("num_requests_running") > 0)
        content = request_body("second")
        second.send(post(b"Content-Length: %d\r\n\r\n" % len(content)) + content)
        second.end_half()
        check_text(second.answer(), "second", is_streamed=False)
        second.end()
        first.socket.shutdown(socket.SHUT_RDWR)
    eventually(lambda: is_idle(server))


def test_an_idle_connection_is_closed_after_the_keep_alive_timeout(tiny_model_path: Path) -> None:
    with (
        running_server(tiny_model_path, "--kv-cache-memory", "4MiB", "--keep-alive-timeout", "1") as server,
        StrictClient(int(server.url.rpartition(":")[2])) as client,
    ):
        client.send(b"GET /version HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert not client.answer("GET").closes
        began = time.monotonic()
        client.end()
        assert 0.8 < time.monotonic() - began < 5
