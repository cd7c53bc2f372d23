"""HttpConnections: an HTTP/1.1 client that takes little time from a server on the same machine.

Received data is stored with its time and read when the response is complete, so no task wakes up for a token. httptools
parses the responses.
"""

import asyncio
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast
from urllib.parse import urlsplit

import httptools

from caravan.cli.bench import BenchFailed


class ConnectionBroken(Exception):
    """The server closed the connection before its response was complete."""


@dataclass
class HttpResponse:
    """A response, and the time.perf_counter() at which each of its parts arrived."""

    status: int = 0
    pieces: list[bytes] = field(default_factory=list)
    times: list[float] = field(default_factory=list)

    @property
    def body(self) -> bytes:
        """The whole body."""
        return b"".join(self.pieces)


class HttpConnections:
    """Connections to one server; each handles one request at a time and is reused."""

    def __init__(self, url: str, headers: Mapping[str, str] | None = None) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise BenchFailed(f"{url!r} is not the address of a server. Use a form such as http://127.0.0.1:8000.")
        try:
            self._port = parts.port or (443 if parts.scheme == "https" else 80)
        except ValueError:
            raise BenchFailed(f"{url!r} has an invalid port. Use a number up to 65535.") from None
        self._host = parts.hostname
        self._ssl = ssl.create_default_context() if parts.scheme == "https" else None
        self.url = url.rstrip("/").removesuffix("/v1")
        self._path = parts.path.rstrip("/").removesuffix("/v1")
        lines = {"Host": parts.netloc.rpartition("@")[2], "Accept": "*/*", **(headers or {})}
        self._headers = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        self._idle: list[_Connection] = []

    async def request(self, method: str, path: str, body: bytes = b"") -> HttpResponse:
        """Return the response. Raises OSError, ConnectionBroken, or httptools.HttpParserError."""
        head = f"{method} {self._path}{path} HTTP/1.1\r\n{self._headers}"
        if body:
            head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        message = head.encode() + b"\r\n" + body
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open:
                try:
                    return await self._send(connection, message)
                except ConnectionBroken:
                    if connection.has_answer:
                        raise  # else the server had closed it, being idle, while we wrote
        _, connection = await asyncio.get_running_loop().create_connection(
            _Connection, self._host, self._port, ssl=self._ssl
        )
        return await self._send(connection, message)

    def close(self) -> None:
        """Close the idle connections."""
        while self._idle:
            self._idle.pop().close()

    async def _send(self, connection: "_Connection", message: bytes) -> HttpResponse:
        try:
            response = await connection.exchange(message)
        except BaseException:
            connection.close()
            raise
        if connection.is_open:
            self._idle.append(connection)
        return response


class _Connection(asyncio.Protocol):
    """One connection; asyncio calls the first three methods, httptools those named on_*."""

    def __init__(self) -> None:
        self.is_open = False
        self.has_answer = False
        self._response = HttpResponse()
        self._now = 0.0
        self._ends_with_connection = True
        self._done: asyncio.Future[HttpResponse] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are not subclasses of it
        self.is_open = True

    def data_received(self, data: bytes) -> None:
        self._now = time.perf_counter()
        self.has_answer = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(error)
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_open = False
        if self._response.status and self._ends_with_connection and exc is None:
            self.on_message_complete()
        self._fail(ConnectionBroken())

    async def exchange(self, message: bytes) -> HttpResponse:
        """Write a request and return its response."""
        self._response, self.has_answer, self._ends_with_connection = HttpResponse(), False, True
        self._parser = httptools.HttpResponseParser(self)
        self._done = asyncio.get_running_loop().create_future()
        self._transport.write(message)
        return await self._done

    def close(self) -> None:
        """Close the connection in any state."""
        self.is_open = False
        self._transport.close()

    def on_header(self, name: bytes, _value: bytes) -> None:
        if name.lower() in (b"content-length", b"transfer-encoding"):
            self._ends_with_connection = False

    def on_headers_complete(self) -> None:
        self._response.status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        self._response.pieces.append(body)
        self._response.times.append(self._now)

    def on_message_complete(self) -> None:
        if not self._parser.should_keep_alive():
            self.close()
        if self._done is not None and not self._done.done():
            self._done.set_result(self._response)

    def _fail(self, error: Exception) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_exception(error)
