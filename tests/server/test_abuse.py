"""A server with a tiny model under several attacks at the same time."""

import asyncio
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from caravan.server.http.protocol import HEAD_SECONDS
from tests.campaign.soak import resident_bytes
from tests.support.running_server import RunningServer, running_server

pytestmark = pytest.mark.slow

LIVE_SECONDS = 0.5  # what asking for health may take meanwhile
GROWTH_BYTES = 64 * 2**20  # of the server's memory


@pytest.fixture(scope="module")
def server(tiny_model_path: Path) -> Iterator[RunningServer]:
    with running_server(tiny_model_path, "--kv-cache-memory", "4MiB") as running:
        yield running


async def connect(server: RunningServer) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", int(server.url.rpartition(":")[2]))


async def pour(server: RunningServer, head: bytes, chunk: bytes, num_chunks: int) -> int:
    """Send a head and chunks, as fast as they are taken; return how many were before the server hung up."""
    reader, writer = await connect(server)
    num_sent = 0
    try:
        writer.write(head)
        for _ in range(num_chunks):
            writer.write(chunk)
            await writer.drain()
            num_sent += 1
            if reader.at_eof():
                break
    except ConnectionError:
        pass
    finally:
        writer.close()
    return num_sent


async def sit(server: RunningServer, first: bytes) -> float:
    """Send the beginning of a request and nothing more; return how long the server puts up with it."""
    reader, writer = await connect(server)
    began = time.monotonic()
    writer.write(first)
    await asyncio.wait_for(reader.read(), 3 * HEAD_SECONDS)
    writer.close()
    return time.monotonic() - began


async def probe(server: RunningServer, stop: asyncio.Event) -> list[float]:
    """Ask for health until `stop` is set; return how long each answer took."""
    took: list[float] = []
    async with httpx.AsyncClient(base_url=server.url, trust_env=False) as http:
        while not stop.is_set():
            for path in ("/livez", "/readyz"):
                began = time.monotonic()
                assert (await http.get(path)).status_code == 200
                took.append(time.monotonic() - began)
            await asyncio.sleep(0.02)
    return took


@pytest.mark.timing
async def test_threat_8_floods_and_idle_connections_are_closed_while_health_checks_are_fast(
    server: RunningServer,
) -> None:
    before = resident_bytes(server.process.pid)
    stop = asyncio.Event()
    probing = asyncio.create_task(probe(server, stop))
    post = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    chunked = post + b"transfer-encoding: chunked\r\n\r\n"
    mebibyte = b"a" * 2**20
    heads, bodies, bytewise, *sat = await asyncio.gather(
        pour(server, b"GET /livez HTTP/1.1\r\nx-long: ", mebibyte, 50),
        pour(server, chunked, b"100000\r\n" + mebibyte + b"\r\n", 300),
        pour(server, chunked, b"1\r\na\r\n" * 500, 1000),
        *(sit(server, b"") for _ in range(100)),
        *(sit(server, b"GET /livez HTTP/1.1\r\nhost: localh") for _ in range(100)),
    )
    stop.set()
    took = await probing
    assert heads < 50  # megabytes of a head
    assert bodies < 300  # of a body
    assert bytewise <= 1000
    assert max(sat) < HEAD_SECONDS + 2
    assert max(took) < LIVE_SECONDS
    assert resident_bytes(server.process.pid) - before < GROWTH_BYTES
    answer = server.http.post("/v1/completions", json={"model": "tiny", "prompt": "still there", "max_tokens": 2})
    assert answer.status_code == 200


async def test_threat_9_unread_streams_do_not_slow_down_others(server: RunningServer) -> None:
    def body(index: int) -> bytes:
        return b'{"model": "tiny", "prompt": "%d", "max_tokens": 300, "ignore_eos": true, "stream": true}' % index

    async def seconds_of_one(index: int) -> float:
        began = time.monotonic()
        async with httpx.AsyncClient(base_url=server.url, trust_env=False, timeout=60) as http:
            headers = {"content-type": "application/json"}
            answer = await http.post("/v1/completions", content=body(index), headers=headers)
        assert answer.text.endswith("data: [DONE]\n\n")
        return time.monotonic() - began

    alone = await seconds_of_one(1000)
    sleepers = []
    for index in range(20):
        reader, writer = await connect(server)
        reader._transport.pause_reading()  # type: ignore[attr-defined]
        head = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        writer.write(head + b"content-length: %d\r\n\r\n" % len(body(index)) + body(index))
        sleepers.append(writer)
    await asyncio.sleep(3 * alone + 0.5)
    assert await seconds_of_one(1001) < 3 * alone + 0.5
    for writer in sleepers:
        writer.transport.abort()


def test_a_server_with_a_certificate_uses_https(tiny_model_path: Path, tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    options = ["--kv-cache-memory", "4MiB", "--tls-certificate", str(certificate), "--tls-key", str(key)]
    with running_server(tiny_model_path, *options) as server:
        assert server.url.startswith("https://127.0.0.1:")
        trusted = ssl.create_default_context(cafile=str(certificate))
        with httpx.Client(base_url=server.url, verify=trusted, trust_env=False) as http:
            answer = http.post("/v1/completions", json={"model": "tiny", "prompt": "a", "max_tokens": 2})
            assert answer.status_code == 200
        with pytest.raises(httpx.HTTPError):
            httpx.get(server.url.replace("https", "http") + "/livez", trust_env=False)
