"""GracefulServer: uvicorn's server, which goes on answering until what it has accepted is done."""

import asyncio
import signal
import socket
import time
from collections.abc import Awaitable, Callable
from types import FrameType

import uvicorn

from caravan.server.http.concurrency_limit import ConcurrencyLimit

LAST_WORDS_SECONDS = 0.5  # that clients get to take the error that ends their streams
SAME_SIGNAL_SECONDS = 0.25  # `timeout` and others send a signal to the process and to its group: it comes twice
LAST_COMERS_SECONDS = 0.2  # that who has just connected gets to send a request and read that it came too late


class GracefulServer(uvicorn.Server):
    """With the first SIGTERM or Ctrl-C the door closes; the server ends when nothing is inside or its time is up.

    Until then who comes is told so, instead of finding no server. A second signal ends it at once: what is inside
    gets an error.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        concurrency_limit: ConcurrencyLimit,
        drain_seconds: float,
        stop_engine: Callable[[], Awaitable[None]],
        end_watch: Callable[[], None],
    ) -> None:
        """`end_watch` ends the streams that would go on for ever."""
        super().__init__(config)
        self._end_watch = end_watch
        self._limit = concurrency_limit
        self._drain_seconds = drain_seconds
        self._stop_engine = stop_engine
        self._ends_at_seconds: float | None = None  # None: no signal has come
        self._signalled_at_seconds = 0.0  # the first time
        self._exits_at_seconds: float | None = None  # None: streams may still go on

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002  # uvicorn's signature
        """Take a signal; `on_tick` sees to the rest."""
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
        """See uvicorn: called ten times a second; the server ends when it returns True."""
        if await super().on_tick(counter):
            return True
        if self._ends_at_seconds is None:
            return False
        now = time.monotonic()
        if self._limit.num_inside == 0:
            self.should_exit = True
        elif self._exits_at_seconds is None and now > self._ends_at_seconds:
            self._exits_at_seconds = now + LAST_WORDS_SECONDS
            await self._stop_engine()
        elif self._exits_at_seconds is not None and now > self._exits_at_seconds:
            self.should_exit = True
        return self.should_exit

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """See uvicorn, which would reset connections whose requests are still on their way."""
        for server in self.servers:
            server.close()
        self._end_watch()
        await asyncio.sleep(LAST_COMERS_SECONDS)
        await super().shutdown(sockets)
