"""GracefulServer: uvicorn's server, which completes accepted requests before it exits."""

import asyncio
import signal
import socket
import time
from collections.abc import Awaitable, Callable
from types import FrameType

import uvicorn

from caravan.server.http.concurrency_limit import ConcurrencyLimit

STREAM_ERROR_SECONDS = 0.5  # for clients to read the error that ends their streams
SAME_SIGNAL_SECONDS = 0.25  # `timeout` and others signal both the process and its group: it arrives twice
LATE_REQUEST_SECONDS = 0.2  # for new connections to send a request and read the 503


class GracefulServer(uvicorn.Server):
    """The first SIGTERM or Ctrl-C closes the concurrency limit; the server exits after the last request or a timeout.

    Until then new requests get a 503 instead of a refused connection. A second signal ends the server at once: running
    requests get an error.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        concurrency_limit: ConcurrencyLimit,
        drain_seconds: float,
        stop_engine: Callable[[], Awaitable[None]],
        end_live_view: Callable[[], None],
    ) -> None:
        """`end_live_view` ends the streams of the live view, which never end by themselves."""
        super().__init__(config)
        self._end_live_view = end_live_view
        self._limit = concurrency_limit
        self._drain_seconds = drain_seconds
        self._stop_engine = stop_engine
        self._ends_at_seconds: float | None = None  # None: no signal was received
        self._signalled_at_seconds = 0.0  # the first time
        self._exits_at_seconds: float | None = None  # None: streams may continue

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002  # uvicorn's signature
        """Handle a signal; `on_tick` does the rest."""
        if sig == signal.SIGINT and sig not in self._captured_signals:
            self._captured_signals.append(sig)  # raised again at the end
        self._limit.close()
        now = time.monotonic()
        if self._ends_at_seconds is None:
            self._signalled_at_seconds = now
            self._ends_at_seconds = now + self._drain_seconds
        elif now > self._signalled_at_seconds + SAME_SIGNAL_SECONDS:
            self._ends_at_seconds = 0.0

    async def on_tick(self, counter: int) -> bool:
        """See uvicorn: called ten times a second; the server exits when it returns True."""
        if await super().on_tick(counter):
            return True
        if self._ends_at_seconds is None:
            return False
        now = time.monotonic()
        if self._limit.num_requests == 0:
            self.should_exit = True
        elif self._exits_at_seconds is None and now > self._ends_at_seconds:
            self._exits_at_seconds = now + STREAM_ERROR_SECONDS
            await self._stop_engine()
        elif self._exits_at_seconds is not None and now > self._exits_at_seconds:
            self.should_exit = True
        return self.should_exit

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """See uvicorn, which would reset connections with requests in transit."""
        for server in self.servers:
            server.close()
        self._end_live_view()
        await asyncio.sleep(LATE_REQUEST_SECONDS)
        await super().shutdown(sockets)
