"""A strict reader of HTTP answers, for tests: whatever is not exactly as RFC 9112 has it is an AssertionError."""

import json
import re
import socket
from dataclasses import dataclass
from typing import Any

TIMEOUT_SECONDS = 20.0
_STATUS_LINE = re.compile(rb"HTTP/1\.1 ([1-5][0-9]{2}) [\x20-\x7e]*")
_FIELD = re.compile(rb"([A-Za-z0-9-]+): ([\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?)")


@dataclass(frozen=True)
class GenerationResponse:
    """One answer and the interim ones before it."""

    status: int
    headers: dict[str, str]
    body: bytes
    num_interim: int

    @property
    def closes(self) -> bool:
        """Whether the connection ends with it."""
        return self.headers.get("connection") == "close"

    def json(self) -> Any:
        """Return the body, which must be JSON and say so."""
        assert self.headers["content-type"] == "application/json", self.headers
        return json.loads(self.body)

    def chunks(self) -> list[Any]:
        """Return the events of a whole stream."""
        assert self.headers["content-type"].startswith("text/event-stream"), self.headers
        events = self.body.decode().removesuffix("\n\n").split("\n\n")
        assert events[-1] == "data: [DONE]", events[-1]
        return [json.loads(event.removeprefix("data: ")) for event in events[:-1]]


class StrictClient:
    """A connection that keeps every byte it has received."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_SECONDS)
        self.received = b""
        self.is_at_end = False

    def __enter__(self) -> "StrictClient":
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        """Send all of it."""
        self.socket.sendall(data)

    def end_half(self) -> None:
        """Send nothing more."""
        self.socket.shutdown(socket.SHUT_WR)

    def receive(self) -> None:
        """Wait for more bytes or the end."""
        part = self.socket.recv(65536)
        self.received += part
        self.is_at_end = not part

    def receive_until(self, end: bytes) -> None:
        """Receive until `end` has come."""
        while end not in self.received:
            self.receive()
            assert not self.is_at_end, self.received

    def is_silent(self, seconds: float) -> bool:
        """Return whether nothing arrives for so long."""
        self.socket.settimeout(seconds)
        try:
            self.receive()
        except TimeoutError:
            return True
        finally:
            self.socket.settimeout(TIMEOUT_SECONDS)
        return False

    def answer(self, method: str = "POST") -> GenerationResponse:
        """Take the next answer from the connection; what was received after it stays."""
        while (found := first_answer(self.received, is_at_end=self.is_at_end, method=method)) is None:
            self.receive()
        answer, self.received = found
        return answer

    def end(self) -> None:
        """Check that the connection ends and that nothing more comes before."""
        while not self.is_at_end:
            self.receive()
        assert self.received == b"", self.received


def first_answer(data: bytes, *, is_at_end: bool, method: str = "POST") -> tuple[GenerationResponse, bytes] | None:
    """Return the first answer in `data` and what follows it; None if there is more to come."""
    num_interim = 0
    while True:
        head, has_head, rest = data.partition(b"\r\n\r\n")
        if not has_head:
            assert not is_at_end, f"the connection ends in the head {data!r}"
            return None
        first, *lines = head.split(b"\r\n")
        status_line = _STATUS_LINE.fullmatch(first)
        assert status_line, first
        status = int(status_line[1])
        if status >= 200:
            break
        assert not lines, lines
        num_interim += 1
        data = rest
    headers: dict[str, str] = {}
    for line in lines:
        field = _FIELD.fullmatch(line)
        assert field, line
        name = field[1].decode().lower()
        assert name not in headers, f"{name} twice"
        headers[name] = field[2].decode()
    found = _body(headers, rest, status, method, is_at_end=is_at_end)
    if found is None:
        assert not is_at_end, f"the connection ends in the body {rest[-200:]!r}"
        return None
    body, rest = found
    return GenerationResponse(status, headers, body, num_interim), rest


def _body(
    headers: dict[str, str], data: bytes, status: int, method: str, *, is_at_end: bool
) -> tuple[bytes, bytes] | None:
    length, encoding = headers.get("content-length"), headers.get("transfer-encoding")
    if method == "HEAD" or status in (204, 304):
        return b"", data
    if length is not None:
        assert encoding is None
        assert re.fullmatch("0|[1-9][0-9]*", length)
        return (data[: int(length)], data[int(length) :]) if len(data) >= int(length) else None
    if encoding is None:
        assert headers.get("connection") == "close", "an answer without an end"
        return (data, b"") if is_at_end else None
    assert encoding == "chunked"
    body = b""
    while True:
        line, has_line, data = data.partition(b"\r\n")
        if not has_line:
            return None
        assert re.fullmatch(rb"0|[1-9a-f][0-9a-f]*", line), line
        size = int(line, 16)
        if len(data) < size + 2:
            return None
        assert data[size : size + 2] == b"\r\n"
        body, data = body + data[:size], data[size + 2 :]
        if not size:
            return body, data
