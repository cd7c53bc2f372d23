"""BoundedHead: HTTP/1.1 as uvicorn reads it, with limits for what comes before the body."""

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from server.openai.errors import ApiError

MAX_HEAD_BYTES = 64 * 1024
HEAD_SECONDS = 10.0  # from the connection, or the first byte of a later head, to its end


class BoundedHead(HttpToolsProtocol):
    """Refuses request lines with headers beyond MAX_HEAD_BYTES, and closes connections that do not bring one in time.

    uvicorn would keep the bytes in memory without end, and wait for ever. What comes in one read with the beginning of
    a head is not counted.
    """

    head_seconds = HEAD_SECONDS

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._num_bytes = 0  # since the head began
        self._is_in_head = False
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        """See HttpToolsProtocol."""
        super().connection_made(transport)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """See HttpToolsProtocol."""
        self._cancel_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read on, or refuse and close."""
        self._num_bytes += len(data)
        super().data_received(data)
        if self._is_in_head and self._num_bytes > MAX_HEAD_BYTES:
            error = ApiError(431, f"The head of the request is larger than {MAX_HEAD_BYTES} bytes.")
            self._refuse(b"431 Request Header Fields Too Large", error)

    def on_message_begin(self) -> None:
        """See HttpToolsProtocol."""
        super().on_message_begin()
        self._num_bytes = 0
        self._is_in_head = True
        if self._head_timer is None:
            self._expect_head()

    def on_headers_complete(self) -> None:
        """See HttpToolsProtocol."""
        self._is_in_head = False
        self._cancel_timer()
        super().on_headers_complete()

    def _expect_head(self) -> None:
        self._head_timer = self.loop.call_later(self.head_seconds, self._give_up)

    def _cancel_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _give_up(self) -> None:
        if self.transport.is_closing():
            return
        if self._is_in_head:
            error = ApiError(408, f"The head of the request did not arrive within {self.head_seconds:g} seconds.")
            self._refuse(b"408 Request Timeout", error)
        else:
            self.transport.close()

    def _refuse(self, status: bytes, error: ApiError) -> None:
        self._is_in_head = False
        answer = error.response()
        lines = [b"HTTP/1.1 " + status, b"connection: close"]
        lines += [name + b": " + value for name, value in answer.raw_headers]
        self.transport.write(b"\r\n".join([*lines, b"", bytes(answer.body)]))
        self.transport.close()
