"""Server-sent events: their form on the wire and the response that streams them."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

import msgspec
from fastapi import Response
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from server.disconnect import until_disconnect

DONE = b"data: [DONE]\n\n"

logger = logging.getLogger(__name__)


def event(payload: dict[str, Any]) -> bytes:
    """Return one event.

    Only a line break ends a line of an event, but clients that use str.splitlines() also break lines at three other
    characters; those are escaped. They can only stand inside JSON strings.
    """
    body = msgspec.json.encode(payload)
    for raw, escaped in ((b"\xc2\x85", b"\\u0085"), (b"\xe2\x80\xa8", b"\\u2028"), (b"\xe2\x80\xa9", b"\\u2029")):
        body = body.replace(raw, escaped)
    return b"data: " + body + b"\n\n"


class EventStream(Response):
    """A response that writes events until they end, the client goes away, or it takes nothing for too long.

    `on_end` is called in every case, once, after the last write.
    """

    media_type = "text/event-stream"

    def __init__(
        self, events: AsyncGenerator[bytes, None], *, write_timeout_seconds: float, on_end: Callable[[], None]
    ) -> None:
        self.status_code = 200
        self.background = None
        self.body = b""
        # X-Accel-Buffering: a proxy such as nginx must pass each event on at once.
        self.init_headers({"cache-control": "no-cache", "x-accel-buffering": "no"})
        self._events = events
        self._write_timeout_seconds = write_timeout_seconds
        self._on_end = on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await until_disconnect(receive, self._write(send))
        except ClientDisconnect:
            logger.debug("The client left its stream.")
        except StalledReader:
            # Returning before the end of the body makes uvicorn close the connection.
            logger.warning("A client took nothing of its stream for %g seconds.", self._write_timeout_seconds)
        finally:
            self._on_end()

    async def _write(self, send: Send) -> None:
        headers = [(name, value) for name, value in self.raw_headers if name != b"content-length"]
        await send({"type": "http.response.start", "status": self.status_code, "headers": headers})
        async with aclosing(self._events) as events:
            async for body in events:
                try:
                    async with asyncio.timeout(self._write_timeout_seconds):
                        await send({"type": "http.response.body", "body": body, "more_body": True})
                except TimeoutError:
                    raise StalledReader from None
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class StalledReader(Exception):
    """The client does not take what is sent to it."""
