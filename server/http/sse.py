"""Server-sent events: their form on the wire and the response that streams them."""

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

from caravan.server.http.disconnect import until_disconnect

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"  # a comment: it means nothing to clients, and proxies see that the stream lives
KEEP_ALIVE_SECONDS = 15.0  # of silence before one is sent; proxies cut streams after 30 to 60

Piece = TypeVar("Piece")

logger = logging.getLogger(__name__)


def event(payload: Any) -> bytes:
    """Return one event."""
    return b"data: " + _json(payload) + b"\n\n"


def named_event(name: str, payload: Any) -> bytes:
    """Return one event of a kind."""
    return b"event: " + name.encode() + b"\n" + event(payload)


def _json(value: Any) -> bytes:
    """Return a JSON value in which nothing but a line feed would end a line.

    Only a line break ends a line of an event, but clients that use str.splitlines() also break lines at three other
    characters; those are escaped. They can only stand inside JSON strings.
    """
    body = msgspec.json.encode(value)
    if body.isascii():  # most are
        return body
    for raw, escaped in ((b"\xc2\x85", b"\\u0085"), (b"\xe2\x80\xa8", b"\\u2028"), (b"\xe2\x80\xa9", b"\\u2029")):
        body = body.replace(raw, escaped)
    return body


class EventStream(Response):
    """A response that writes events until they end, the client goes away, or it takes nothing for too long.

    Once it is called, it calls `on_end` in every case, after the last write.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncGenerator[bytes, None],
        *,
        write_timeout_seconds: float,
        on_end: Callable[[], None],
        keep_alive_seconds: float = KEEP_ALIVE_SECONDS,
    ) -> None:
        self.status_code = 200
        self.background = None
        self.body = b""
        # X-Accel-Buffering: a proxy such as nginx must pass each event on at once.
        self.init_headers({"cache-control": "no-cache", "x-accel-buffering": "no"})
        self._events = events
        self._write_timeout_seconds = write_timeout_seconds
        self._keep_alive_seconds = keep_alive_seconds
        self._on_end = on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await until_disconnect(receive, self._write(send))
        except ClientDisconnect:
            logger.debug("The client left its stream.")
        except StalledReader:
            # Returning before the end of the body makes AsgiCycle cut the connection.
            logger.warning("A client took nothing of its stream for %g seconds.", self._write_timeout_seconds)
        finally:
            self._on_end()

    async def _write(self, send: Send) -> None:
        headers = [(name, value) for name, value in self.raw_headers if name != b"content-length"]
        await send({"type": "http.response.start", "status": self.status_code, "headers": headers})
        try:
            async with asyncio.timeout(None) as limit, aclosing(self._events) as events:
                watch = WriteWatch(self._write_timeout_seconds, on_stall=lambda: limit.reschedule(0))
                keep_alive = KeepAlive(self._keep_alive_seconds, lambda: send(_body(KEEP_ALIVE)), watch)
                with watch, keep_alive:
                    async for body in events:
                        began = watch.write_began_seconds = time.monotonic()
                        await send(_body(body))
                        watch.write_began_seconds = None
                        keep_alive.wrote_at_seconds = began
                    watch.write_began_seconds = time.monotonic()
                    await send({"type": "http.response.body", "body": b"", "more_body": False})
        except TimeoutError:
            raise StalledReader from None


class WriteWatch:
    """Notices a write that has waited for too long, with one timer for all writes of a stream.

    A timer for each write would cost a good part of what the write costs.
    """

    def __init__(self, max_seconds: float, on_stall: Callable[[], None]) -> None:
        self.write_began_seconds: float | None = None  # time.monotonic(); None between writes
        self._max_seconds = max_seconds
        self._on_stall = on_stall
        self._timer: asyncio.TimerHandle

    def __enter__(self) -> "WriteWatch":
        self._look_after(self._max_seconds)
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()

    def _look_after(self, seconds: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(seconds, self._look)

    def _look(self) -> None:
        began = self.write_began_seconds
        left_seconds = self._max_seconds if began is None else began + self._max_seconds - time.monotonic()
        if left_seconds > 0:
            self._look_after(left_seconds)
        else:
            self._on_stall()


class KeepAlive:
    """Sends a comment when nothing was written for a while, with one timer for a stream."""

    def __init__(self, silent_seconds: float, send_comment: Callable[[], Awaitable[None]], watch: WriteWatch) -> None:
        """No comment is sent while `watch` sees a write that waits for the client."""
        self.wrote_at_seconds = time.monotonic()
        self._silent_seconds = silent_seconds
        self._send_comment = send_comment
        self._watch = watch
        self._sending: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle

    def __enter__(self) -> "KeepAlive":
        self._look_after(self._silent_seconds)
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        if self._sending is not None:
            self._sending.cancel()  # one that has not begun must not follow the end

    def _look_after(self, seconds: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(seconds, self._look)

    def _look(self) -> None:
        now = time.monotonic()
        left_seconds = self.wrote_at_seconds + self._silent_seconds - now
        if left_seconds <= 0:
            left_seconds = self._silent_seconds
            if self._watch.write_began_seconds is None and (self._sending is None or self._sending.done()):
                self.wrote_at_seconds = now
                self._sending = asyncio.ensure_future(self._send_comment())
        self._look_after(left_seconds)


async def within(seconds: float, pieces: Awaitable[list[Piece]]) -> list[Piece]:
    """Return what `pieces` returns, an empty list if that takes longer than `seconds`; it is cancelled then."""
    try:
        async with asyncio.timeout(seconds):
            return await pieces
    except TimeoutError:
        return []


def _body(body: bytes) -> dict[str, Any]:
    return {"type": "http.response.body", "body": body, "more_body": True}


class StalledReader(Exception):
    """The client does not take what is sent to it."""
