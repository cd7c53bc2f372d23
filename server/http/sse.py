"""Server-sent events: their encoding and the response that streams them."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, TypeVar

import msgspec
from fastapi import Response
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from caravan.server.http.asgi_cycle import SCOPE_WRITE_BODY, WriteBody
from caravan.server.http.disconnect import until_disconnect
from caravan.server.http.stream_form import StreamForm

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"  # a comment, which clients ignore; it keeps proxies from closing the stream
KEEP_ALIVE_SECONDS = 15.0  # without output before a comment; proxies close idle streams after 30 to 60

EVENTS = StreamForm("text/event-stream", KEEP_ALIVE)

Item = TypeVar("Item")

logger = logging.getLogger(__name__)


def event(payload: Any) -> bytes:
    """Return an event."""
    body = msgspec.json.encode(payload)
    return b"data: %b\n\n" % (body if body.isascii() else _without_line_breaks(body))  # most are


def named_event(name: str, payload: Any) -> bytes:
    """Return an event with a name."""
    return b"event: " + name.encode() + b"\n" + event(payload)


def _without_line_breaks(body: bytes) -> bytes:
    """Return JSON without the Unicode characters that str.splitlines() treats as line breaks.

    They do not end a line of an event, but some clients split lines with str.splitlines(). They only occur inside JSON
    strings, where they can be escaped.
    """
    for raw, escaped in ((b"\xc2\x85", b"\\u0085"), (b"\xe2\x80\xa8", b"\\u2028"), (b"\xe2\x80\xa9", b"\\u2029")):
        body = body.replace(raw, escaped)
    return body


class EventStream(Response):
    """A response that streams events until they end, the client disconnects, or a write times out.

    Once called, it always calls `on_end` after the last write.
    """

    def __init__(
        self,
        events: AsyncGenerator[bytes, None],
        *,
        write_timeout_seconds: float,
        on_end: Callable[[], None],
        keep_alive_seconds: float = KEEP_ALIVE_SECONDS,
        form: StreamForm = EVENTS,
    ) -> None:
        self.status_code = 200
        self.media_type = form.media_type
        self.background = None
        self.body = b""
        # X-Accel-Buffering: nginx must not buffer events.
        self.init_headers({"cache-control": "no-cache", "x-accel-buffering": "no"})
        self._events = events
        self._write_timeout_seconds = write_timeout_seconds
        self._keep_alive_seconds = keep_alive_seconds
        self._on_end = on_end
        self._keep_alive = form.keep_alive

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await until_disconnect(receive, self._write(send, scope.get(SCOPE_WRITE_BODY)))
        except ClientDisconnect:
            logger.debug("The client disconnected from its stream.")
        except WriteTimedOut:
            # Returning before the end of the body makes AsgiCycle close the connection.
            logger.warning("A client did not read from its stream for %g seconds.", self._write_timeout_seconds)
        finally:
            self._on_end()

    async def _write(self, send: Send, write_body: WriteBody | None) -> None:
        headers = [(name, value) for name, value in self.raw_headers if name != b"content-length"]
        await send({"type": "http.response.start", "status": self.status_code, "headers": headers})
        try:
            async with asyncio.timeout(None) as limit, aclosing(self._events) as events:
                write_timeout = WriteTimeout(self._write_timeout_seconds, on_stall=lambda: limit.reschedule(0))
                keep_alive = KeepAlive(self._keep_alive_seconds, lambda: send(_body(self._keep_alive)), write_timeout)
                with write_timeout, keep_alive:
                    async for body in events:
                        began = write_timeout.write_began_seconds = time.monotonic()
                        if write_body is None or not write_body(body):
                            await send(_body(body))
                        write_timeout.write_began_seconds = None
                        keep_alive.wrote_at_seconds = began
                    write_timeout.write_began_seconds = time.monotonic()
                    await send({"type": "http.response.body", "body": b"", "more_body": False})
        except TimeoutError:
            raise WriteTimedOut from None


class WriteTimeout:
    """Detects a write that waits for too long, with one timer for all writes of a stream.

    A timer for each write would cost about as much as the write.
    """

    def __init__(self, max_seconds: float, on_stall: Callable[[], None]) -> None:
        self.write_began_seconds: float | None = None  # time.monotonic(); None between writes
        self._max_seconds = max_seconds
        self._on_stall = on_stall
        self._timer: asyncio.TimerHandle

    def __enter__(self) -> "WriteTimeout":
        self._check_after(self._max_seconds)
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()

    def _check_after(self, seconds: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(seconds, self._check)

    def _check(self) -> None:
        began = self.write_began_seconds
        left_seconds = self._max_seconds if began is None else began + self._max_seconds - time.monotonic()
        if left_seconds > 0:
            self._check_after(left_seconds)
        else:
            self._on_stall()


class KeepAlive:
    """Sends a comment when nothing was written for a while, with one timer per stream."""

    def __init__(self, idle_seconds: float, send_comment: Callable[[], Awaitable[None]], timeout: WriteTimeout) -> None:
        """No comment is sent while `timeout` waits for a write."""
        self.wrote_at_seconds = time.monotonic()
        self._idle_seconds = idle_seconds
        self._send_comment = send_comment
        self._write_timeout = timeout
        self._sending: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle

    def __enter__(self) -> "KeepAlive":
        self._check_after(self._idle_seconds)
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        if self._sending is not None:
            self._sending.cancel()  # a comment must not follow the end

    def _check_after(self, seconds: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(seconds, self._check)

    def _check(self) -> None:
        now = time.monotonic()
        left_seconds = self.wrote_at_seconds + self._idle_seconds - now
        if left_seconds <= 0:
            left_seconds = self._idle_seconds
            if self._write_timeout.write_began_seconds is None and (self._sending is None or self._sending.done()):
                self.wrote_at_seconds = now
                self._sending = asyncio.ensure_future(self._send_comment())
        self._check_after(left_seconds)


async def within(seconds: float, items: Awaitable[list[Item]]) -> list[Item]:
    """Return the result of `items`, or cancel it after `seconds` and return an empty list."""
    try:
        async with asyncio.timeout(seconds):
            return await items
    except TimeoutError:
        return []


def _body(body: bytes) -> dict[str, Any]:
    return {"type": "http.response.body", "body": body, "more_body": True}


class WriteTimedOut(Exception):
    """The client does not read what is sent to it."""
