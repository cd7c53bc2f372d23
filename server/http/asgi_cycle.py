"""AsgiCycle: one request and its response, between an ASGI application and a connection."""

import asyncio
import logging
import re
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import Final, Protocol

from starlette.types import ASGIApp, Message, Scope

_BAD_NAME = re.compile(rb"[\x00-\x20\x7f()<>@,;:\[\]={}\\\"]")
_BAD_VALUE = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_PREFIX: Final = b"HTTP/1.1 "  # of every response
_STATUS_WITHOUT_BODY: Final = (204, 304)
SCOPE_WRITE_BODY: Final = "caravan.write_body"  # ASGI scope: AsgiCycle.write_body

WriteBody = Callable[[bytes], bool]

logger = logging.getLogger(__name__)

Headers = Iterable[tuple[bytes, bytes]]


class Connection(Protocol):
    """The connection as a cycle uses it."""

    is_write_paused: bool

    def write(self, data: bytes) -> None:
        """Send bytes; the buffer has no limit."""

    async def drain(self) -> None:
        """Wait until the buffer has room for more."""

    def resume_reading(self) -> None:
        """Receive more of the body."""

    def abort(self, *, is_reset: bool = False) -> None:
        """Close the connection at once; with `is_reset` the client sees an error."""

    def end_response(self) -> None:
        """Read the next request or close the connection; called once, after the last byte of the response."""


class AsgiCycle:
    """One request and its response.

    The response has the application's Content-Length, else it is chunked. HTTP/1.0 has no chunks: there the connection
    is closed at the end of the response. `keeps_alive` is final with the first byte of the response; a request body
    that is incomplete by then is not read further, so the connection is closed.
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
        self.has_more_body = True  # the request body is incomplete
        self.is_started = False  # the response; it cannot be replaced any more
        self.is_complete = False  # the response
        self._connection = connection
        self._scope = scope
        self._default_headers = default_headers
        self._expects_continue = expects_continue
        self._is_disconnected = False
        self._body = bytearray()  # of the request, not received by the application
        self._changed = asyncio.Event()  # more body, a disconnect, or the end of the response
        self._num_bytes_ahead = 0  # of _PREFIX, sent ahead of the response
        self._head = b""  # of the response, buffered to be sent with the first part of the body
        self._drops_body = False  # of the response
        self._is_chunked = False
        self._num_left: int | None = None  # remaining bytes of the response body; None: no Content-Length

    @property
    def num_unread(self) -> int:
        """Bytes of the body that the application has not received."""
        return len(self._body)

    def feed(self, body: bytes, *, is_last: bool) -> None:
        """Add a part of the request's body."""
        self._body += body
        self.has_more_body = not is_last
        if body:
            self._expects_continue = False  # the client did not wait
        if body or is_last:
            self._changed.set()

    def disconnect(self) -> None:
        """Send the application `http.disconnect`; further output is dropped."""
        self._is_disconnected = not self.is_complete
        self._changed.set()

    def send_ahead(self) -> None:
        """Send the next byte of the prefix that all responses have, if any is left."""
        if not (self.is_started or self._is_disconnected) and self._num_bytes_ahead < len(_PREFIX):
            self._connection.write(_PREFIX[self._num_bytes_ahead : self._num_bytes_ahead + 1])
            self._num_bytes_ahead += 1

    async def run(self, app: ASGIApp) -> None:
        """Run the application. If it does not complete the response, the connection is closed."""
        self._scope[SCOPE_WRITE_BODY] = self.write_body
        try:
            await app(self._scope, self.receive, self.send)
        except Exception as error:
            logger.error("The application failed.", exc_info=error)
        finally:
            if self.is_complete or self._is_disconnected:
                pass
            elif self._head or not self.is_started:
                self.respond(500, [(b"content-type", b"text/plain")], b"The server failed to handle this request.\n")
            else:
                # A response without a length ends with the connection: an orderly close would complete it.
                self._connection.abort(is_reset=self._num_left is None and not self._is_chunked)

    def respond(self, status: int, headers: Headers, body: bytes) -> None:
        """Send a whole response in place of the application's."""
        self._start(status, [*headers, (b"content-length", b"%d" % len(body))])
        self._continue(body, has_more=False)

    async def receive(self) -> Message:
        """Return the next part of the body, or wait for a disconnect or the end of the response. See ASGI."""
        if self._expects_continue and self.has_more_body and not self._is_disconnected:
            self._expects_continue = False
            self._connection.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if not (self._is_disconnected or self.is_complete):
            self._connection.resume_reading()
            await self._changed.wait()
            self._changed.clear()
        if self._is_disconnected or self.is_complete:
            return {"type": "http.disconnect"}
        body = bytes(self._body)
        self._body.clear()
        return {"type": "http.request", "body": body, "more_body": self.has_more_body}

    async def send(self, message: Message) -> None:
        """Send the next part of the response; waits while the write buffer is full. See ASGI."""
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

    def write_body(self, body: bytes) -> bool:
        """Send a part of a body that goes on, as `send` does but past all middleware; return False if it must wait."""
        if self._connection.is_write_paused or self.is_complete or not self.is_started:
            return False
        if not self._is_disconnected:
            self._continue(body, has_more=True)
        return True

    def _start(self, status: int, headers: Headers) -> None:
        lines = [_PREFIX + b"%d %s\r\n" % (status, _phrase(status))]
        has_close = False
        self._is_chunked, self._num_left = False, None
        for name, value in (*self._default_headers, *headers):
            if _BAD_NAME.search(name) or _BAD_VALUE.search(value):
                raise RuntimeError("A response header has invalid characters.")
            name = name.lower()
            if name == b"content-length":
                self._num_left = int(value)
            elif name == b"transfer-encoding":
                raise RuntimeError("The application must not set Transfer-Encoding.")
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
                raise RuntimeError("The response body does not match its Content-Length.")
        if self._head:
            body = self._head + body
            self._head = b""
        if body:
            self._connection.write(body)
        if not has_more:
            self.is_complete = True
            self._changed.set()
            self._connection.end_response()

    def _flush_head(self) -> None:
        """Send the head if the application has yielded before the first byte of the body."""
        if self._head and not self._is_disconnected:
            self._connection.write(self._head)
            self._head = b""


def _phrase(status: int) -> bytes:
    try:
        return HTTPStatus(status).phrase.encode()
    except ValueError:
        return b""
