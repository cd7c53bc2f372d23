"""HalfClose: detect whether a client that has half-closed its connection still waits for the response.

A half-close looks the same whether the client waits for the response or has gone. A client that has gone replies to
the next byte with a reset. So the first bytes of the response, which are the same in all responses, are sent one at a
time at growing intervals, with a check for a reset before each.
"""

import asyncio
import socket
from collections.abc import Callable
from typing import Final

FIRST_SECONDS: Final = 0.005
MAX_SECONDS: Final = 20.0
_GROWTH: Final = 4
_KEEPALIVE_SECONDS: Final = 15  # interval of TCP keep-alive probes, after the last byte
_KEEPALIVE_PROBES: Final = 4


class HalfClose:
    """Calls `on_reset` when the client has gone."""

    def __init__(
        self, transport: asyncio.Transport, *, send_ahead: Callable[[], None], on_reset: Callable[[], None]
    ) -> None:
        """`send_ahead` sends one byte of the response, if one can be sent ahead."""
        self._socket: socket.socket = transport.get_extra_info("socket")
        self._send_ahead = send_ahead
        self._on_reset = on_reset
        self._seconds = FIRST_SECONDS
        self._timer: asyncio.TimerHandle | None = None
        self._enable_keepalive()
        self._check_later()

    def stop(self) -> None:
        """Stop checking."""
        if self._timer is not None:
            self._timer.cancel()

    def _check_later(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._seconds, self._check)
        self._seconds = min(self._seconds * _GROWTH, MAX_SECONDS)

    def _check(self) -> None:
        if self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self._on_reset()
        else:
            self._send_ahead()
            self._check_later()

    def _enable_keepalive(self) -> None:
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in (
            ("TCP_KEEPIDLE", _KEEPALIVE_SECONDS),
            ("TCP_KEEPINTVL", _KEEPALIVE_SECONDS),
            ("TCP_KEEPCNT", _KEEPALIVE_PROBES),
        ):
            if hasattr(socket, name):  # missing on some systems
                self._socket.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
