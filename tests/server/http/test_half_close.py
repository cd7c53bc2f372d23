"""Clients that half-close their connection: some wait for the response, some have gone."""

import asyncio
import ssl
import subprocess

import pytest

from tests.support.answering_app import REQUEST, Answering, read_to_end, served
from tests.support.waiting import until


@pytest.fixture
def app() -> Answering:
    return Answering()


async def test_a_client_that_half_closes_gets_a_later_response(app: Answering) -> None:
    async with served(app) as (_, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(REQUEST % b"slow")
        writer.write_eof()
        await asyncio.sleep(0.2)
        app.may_go_on.set()
        answer = await read_to_end(reader)
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
        assert answer.endswith(b"\r\nconnection: close\r\n\r\nok")
        assert app.events == ["ready"]
        writer.close()


@pytest.mark.slow
@pytest.mark.parametrize("half_closes_before", [False, True])
async def test_threat_11_a_client_that_has_gone_is_detected_before_the_response(
    app: Answering, half_closes_before: bool
) -> None:
    async with served(app) as (server, port):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(REQUEST % b"slow")
        if half_closes_before:
            writer.write_eof()
            await asyncio.sleep(0.1)
        writer.close()
        await until(lambda: app.events == ["gone"] and not server.server_state.connections)


async def test_a_half_close_within_a_request_is_a_disconnect(app: Answering) -> None:
    async with served(app) as (server, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write((REQUEST % b"slow")[:-1])
        writer.write_eof()
        assert await read_to_end(reader) == b""
        assert app.events == ["gone"]
        assert not server.server_state.connections
        writer.close()


@pytest.mark.parametrize("request_line", [b"POST /slow HTTP/1.0\r\n", b"POST /slow HTTP/1.1\r\nconnection: close\r\n"])
async def test_threat_26_a_half_close_does_not_keep_a_closing_connection_open(
    app: Answering, request_line: bytes
) -> None:
    async with served(app) as (_, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request_line + b"host: x\r\ncontent-length: 0\r\n\r\n" + REQUEST % b"echo")
        writer.write_eof()
        await asyncio.sleep(0.1)
        app.may_go_on.set()
        assert (await read_to_end(reader)).count(b"HTTP/1.1 ") == 1
        writer.close()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("tls")
    files = {"ssl_keyfile": str(folder / "key.pem"), "ssl_certfile": str(folder / "certificate.pem")}
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    command += ["-keyout", files["ssl_keyfile"], "-out", files["ssl_certfile"]]
    subprocess.run(command, check=True, capture_output=True)
    return files


async def test_over_tls_responses_are_complete_and_disconnects_are_detected(
    app: Answering, certificate: dict[str, str]
) -> None:
    trust = ssl.create_default_context(cafile=certificate["ssl_certfile"])
    async with served(app, **certificate) as (server, port):
        reader, writer = await asyncio.open_connection("localhost", port, ssl=trust)
        writer.write(REQUEST % b"echo" + (REQUEST % b"early")[:-1])
        assert (await reader.readuntil(b"hello")).startswith(b"HTTP/1.1 200 ")
        assert (await read_to_end(reader)).endswith(b"\r\nconnection: close\r\n\r\nno")
        writer.close()
        _, writer = await asyncio.open_connection("localhost", port, ssl=trust)
        writer.write(REQUEST % b"slow")
        writer.close()
        await until(lambda: app.events == ["gone"] and not server.server_state.connections)
