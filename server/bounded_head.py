"""BoundedHead: HTTP/1.1 as uvicorn reads it, with a limit for what comes before the body."""

from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from server.openai.errors import ApiError

MAX_HEAD_BYTES = 64 * 1024


class BoundedHead(HttpToolsProtocol):
    """Refuses a request line with headers beyond MAX_HEAD_BYTES; uvicorn would keep them in memory without end.

    What comes in one read with the beginning of a head is not counted.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._num_bytes = 0  # since the head began
        self._is_in_head = False

    def data_received(self, data: bytes) -> None:
        """Read on, or refuse and close."""
        self._num_bytes += len(data)
        super().data_received(data)
        if self._is_in_head and self._num_bytes > MAX_HEAD_BYTES:
            self._is_in_head = False
            answer = ApiError(431, f"The head of the request is larger than {MAX_HEAD_BYTES} bytes.").response()
            lines = [b"HTTP/1.1 431 Request Header Fields Too Large", b"connection: close"]
            lines += [name + b": " + value for name, value in answer.raw_headers]
            self.transport.write(b"\r\n".join([*lines, b"", bytes(answer.body)]))
            self.transport.close()

    def on_message_begin(self) -> None:
        """See HttpToolsProtocol."""
        super().on_message_begin()
        self._num_bytes = 0
        self._is_in_head = True

    def on_headers_complete(self) -> None:
        """See HttpToolsProtocol."""
        self._is_in_head = False
        super().on_headers_complete()
