"""AsgiCycle: one request and its answer, between an ASGI application and a connection."""

import asyncio
import logging
import re
from collections.abc import Iterable
from http import HTTPStatus
from typing import Final, Protocol

from starlette.types import ASGIApp, Message, Scope

_BAD_NAME = re.compile(rb"[\x00-\x20\x7f()<>@,;:\[\]={}\\\"]")
_BAD_VALUE = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_PREFIX: Final = b"HTTP/1.1 "  # every answer begins with it
_STATUS_WITHOUT_BODY: Final = (204, 304)

logger = logging.getLogger(__name__)

Headers = Iterable[tuple[bytes, bytes]]


class Connection(Protocol):
    """What a cycle needs of its connection."""

    is_write_paused: bool

    def write(self, data: bytes) -> None:
        """Send bytes; they are buffered without a bound."""

    async def drain(self) -> None:
        """Wait until what is buffered is little enough for more."""

    def resume_reading(self) -> None:
        """Receive more of the body."""

    def abort(self, *, is_reset: bool = False) -> None:
        """Cut the connection, in a way that the client sees as an error if `is_reset`."""

    def end_answer(self) -> None:
        """Go on to the next request or close the connection; called once, after the last byte of the answer."""


class AsgiCycle:
    """One request and its answer.

    The answer has the length that the application states, else it is chunked. HTTP/1.0 has no chunks: there the end of
    the connection is the end of the answer. `keeps_alive` is settled with the first byte of the answer; a body that is
    not complete by then is not read on, so the connection cannot serve another request.
    """

    def __init__(
        self,
        connection: Connection,
        scope: Scope,
        default_headers: Headers,
        *,
        keeps_alive: bool,
        expects_continue: bool,
    ) -> None:
        self.keeps_alive = keeps_alive
        self.has_more_body = True  # of the request; not all of it has been fed
        self.is_started = False  # the answer; it cannot become another one
        self.is_complete = False  # the answer
        self._connection = connection
        self._scope = scope
        self._default_headers = default_headers
        self._expects_continue = expects_continue
        self._is_disconnected = False
        self._body = bytearray()  # of the request, not yet taken
        self._news = asyncio.Event()  # more of the body, or an end
        self._num_bytes_ahead = 0  # of _PREFIX, sent before the answer was known
        self._head = b""  # of the answer, while it waits to be sent together with the first part of the body
        self._drops_body = False  # of the answer
        self._is_chunked = False
        self._num_left: int | None = None  # bytes of the answer's body that are still to be sent; None: not stated

    @property
    def num_unread(self) -> int:
        """Bytes of the body that the application has not taken."""
        return len(self._body)

    def feed(self, body: bytes, *, is_last: bool) -> None:
        """Add a part of the request's body."""
        self._body += body
        self.has_more_body = not is_last
        if body:
            self._expects_continue = False  # the client sent it unasked
        if body or is_last:
            self._news.set()

    def disconnect(self) -> None:
        """Let the application know that nobody reads the answer; what it still sends is dropped."""
        self._is_disconnected = not self.is_complete
        self._news.set()

    def send_ahead(self) -> None:
        """Send one of the bytes that every answer begins with, if there is one left."""
        if not (self.is_started or self._is_disconnected) and self._num_bytes_ahead < len(_PREFIX):
            self._connection.write(_PREFIX[self._num_bytes_ahead : self._num_bytes_ahead + 1])
            self._num_bytes_ahead += 1

    async def run(self, app: ASGIApp) -> None:
        """Let the application answer. An answer that it does not end cuts the connection."""
        try:
            await app(self._scope, self.receive, self.send)
        except Exception as error:
            logger.error("The application failed.", exc_info=error)
        finally:
            if self.is_complete or self._is_disconnected:
                pass
            elif self._head or not self.is_started:
                self.answer(500, [(b"content-type", b"text/plain")], b"The server failed to answer this request.\n")
            else:
                # Only the end of the connection ends an answer without a length: an orderly end would complete it.
                self._connection.abort(is_reset=self._num_left is None and not self._is_chunked)

    def answer(self, status: int, headers: Headers, body: bytes) -> None:
        """Send a whole answer in place of the application's."""
        self._start(status, [*headers, (b"content-length", b"%d" % len(body))])
        self._continue(body, has_more=False)

    async def receive(self) -> Message:
        """Return the next part of the body, or wait until the client is gone or the answer complete. See ASGI."""
        if self._expects_continue and self.has_more_body and not self._is_disconnected:
            self._expects_continue = False
            self._connection.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if not (self._is_disconnected or self.is_complete):
            self._connection.resume_reading()
            await self._news.wait()
            self._news.clear()
        if self._is_disconnected or self.is_complete:
            return {"type": "http.disconnect"}
        body = bytes(self._body)
        self._body.clear()
        return {"type": "http.request", "body": body, "more_body": self.has_more_body}

    async def send(self, message: Message) -> None:
        """Send the next part of the answer; waits while the client takes nothing. See ASGI."""
        if self._connection.is_write_paused and not self._is_disconnected:
            await self._connection.drain()
        if self._is_disconnected:
            return
        if not self.is_started:
            if message["type"] != "http.response.start":
                raise RuntimeError(f"Expected http.response.start, got {message['type']}.")
            self._start(message["status"], message.get("headers", ()))
            asyncio.get_running_loop().call_soon(self._flush_head)
        elif self.is_complete or message["type"] != "http.response.body":
            raise RuntimeError(f"Expected {'nothing' if self.is_complete else 'a body'}, got {message['type']}.")
        else:
            self._continue(message.get("body", b""), has_more=message.get("more_body", False))

    def _start(self, status: int, headers: Headers) -> None:
        lines = [_PREFIX + b"%d %s\r\n" % (status, _phrase(status))]
        has_close = False
        self._is_chunked, self._num_left = False, None
        for name, value in (*self._default_headers, *headers):
            if _BAD_NAME.search(name) or _BAD_VALUE.search(value):
                raise RuntimeError("A header of the answer has characters that none may have.")
            name = name.lower()
            if name == b"content-length":
                self._num_left = int(value)
            elif name == b"transfer-encoding":
                raise RuntimeError("The application must not choose a transfer encoding.")
            elif name == b"connection" and value.lower() == b"close":
                has_close = True
            lines.append(b"%s: %s\r\n" % (name, value))
        self._drops_body = self._scope["method"] == "HEAD" or status in _STATUS_WITHOUT_BODY
        if self._num_left is None and not self._drops_body:
            self._is_chunked = self._scope["http_version"] == "1.1"
            if self._is_chunked:
                lines.append(b"transfer-encoding: chunked\r\n")
        self.keeps_alive = self.keeps_alive and not has_close and not self.has_more_body
        if not (self.keeps_alive or has_close):
            lines.append(b"connection: close\r\n")
        lines.append(b"\r\n")
        self.is_started = True
        self._expects_continue = False
        self._head = b"".join(lines)[self._num_bytes_ahead :]

    def _continue(self, body: bytes, *, has_more: bool) -> None:
        if self._drops_body:
            body = b""
        elif self._is_chunked:
            body = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
            if not has_more:
                body += b"0\r\n\r\n"
        elif self._num_left is not None:
            self._num_left -= len(body)
            if self._num_left < 0 or (self._num_left > 0 and not has_more):
                raise RuntimeError("The body of the answer is not as long as its Content-Length.")
        if self._head:
            body = self._head + body
            self._head = b""
        if body:
            self._connection.write(body)
        if not has_more:
            self.is_complete = True
            self._news.set()
            self._connection.end_answer()

    def _flush_head(self) -> None:
        """Send the head if the application has let other work go on before its first byte of the body."""
        if self._head and not self._is_disconnected:
            self._connection.write(self._head)
            self._head = b""


def _phrase(status: int) -> bytes:
    try:
        return HTTPStatus(status).phrase.encode()
    except ValueError:
        return b""
