"""HalfClose: a client that has ended its half of a connection, watched until its answer is complete.

The end of a client's half looks the same whether the client waits for its answer or has gone. A client that has gone
answers the next byte it is sent with a reset. So the watch sends the first bytes of the answer, which are the same in
every answer, one at a time at growing intervals, and looks for a reset.
"""

import asyncio
import socket
from collections.abc import Callable
from typing import Final

FIRST_SECONDS: Final = 0.005
LONGEST_SECONDS: Final = 20.0
_GROWTH: Final = 4
_KEEPALIVE_SECONDS: Final = 15  # after the last byte the operating system asks, by probes without content
_KEEPALIVE_PROBES: Final = 4


class HalfClose:
    """A watch that calls `on_reset` when the client turns out to be gone."""

    def __init__(
        self, transport: asyncio.Transport, *, send_ahead: Callable[[], None], on_reset: Callable[[], None]
    ) -> None:
        """`send_ahead` sends one byte of the answer, if there is one that can be sent."""
        self._socket: socket.socket = transport.get_extra_info("socket")
        self._send_ahead = send_ahead
        self._on_reset = on_reset
        self._seconds = FIRST_SECONDS
        self._timer: asyncio.TimerHandle | None = None
        self._ask_by_keepalive()
        self._look_later()

    def stop(self) -> None:
        """End the watch."""
        if self._timer is not None:
            self._timer.cancel()

    def _look_later(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._seconds, self._look)
        self._seconds = min(self._seconds * _GROWTH, LONGEST_SECONDS)

    def _look(self) -> None:
        if self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self._on_reset()
        else:
            self._send_ahead()
            self._look_later()

    def _ask_by_keepalive(self) -> None:
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in (
            ("TCP_KEEPIDLE", _KEEPALIVE_SECONDS),
            ("TCP_KEEPINTVL", _KEEPALIVE_SECONDS),
            ("TCP_KEEPCNT", _KEEPALIVE_PROBES),
        ):
            if hasattr(socket, name):  # not on every system
                self._socket.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
