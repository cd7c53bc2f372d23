"""RequestReader: parse HTTP/1.1 requests from a stream of bytes (RFC 9112).

Anything that two parsers could read differently is rejected, because a proxy in front of the server is the second
parser: a response that is matched to the wrong request reaches the wrong user.
"""

import re
from dataclasses import dataclass
from typing import Final

MAX_HEAD_BYTES: Final = 64 * 1024
MAX_TRAILER_BYTES: Final = 8 * 1024
MAX_CHUNK_LINE_BYTES: Final = 1024
FREE_CHUNK_OVERHEAD_BYTES: Final = 64 * 1024  # beyond it, overhead must be in proportion to the body

_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]"
_NAME_BYTES = bytes(byte for byte in range(128) if re.match(_TOKEN, bytes([byte])))
_CONTROL_BYTES = bytes(byte for byte in (*range(32), 127) if byte != ord("\t"))
_REQUEST_LINE = re.compile(rb"(" + _TOKEN + rb"{1,32}) ([\x21-\x7e]+) HTTP/([0-9]\.[0-9])")
_ABSOLUTE_TARGET = re.compile(rb"https?://([^/?]+)(/[^?]*)?(?:\?(.*))?", re.IGNORECASE)
_BROKEN_LINE = re.compile(rb"(?<!\r)\n|\r[^\n]|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_LENGTH = re.compile(rb"[0-9]{1,18}")
_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,15})(?:[ \t]*;[\t\x20-\x7e\x80-\xff]*)?\r\n")
_BROKEN_TEXT = "The request head has a control character or a line without CRLF."
_FRAMING_NAMES = frozenset({b"host", b"connection", b"content-length", b"transfer-encoding", b"expect"})


class FramingError(ValueError):
    """The bytes are not a valid request; the rest of the connection cannot be parsed."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class RequestHead:
    """The request line and the headers of one request."""

    method: str
    path: bytes  # percent-encoded, as sent
    query: bytes  # without the question mark
    version: str  # 1.0 or 1.1
    headers: list[tuple[bytes, bytes]]  # names in lower case
    num_body_bytes: int | None  # None: the body is chunked
    keeps_alive: bool  # the connection may be reused
    expects_continue: bool  # the client waits for "100 Continue" before it sends the body


class RequestReader:
    """The parser of one connection. `push` adds bytes; `read_head` and `read_body` consume them.

    An Upgrade header is ignored: the protocol is never switched, so the body belongs to its request (RFC 9110, 7.8).
    """

    def __init__(self) -> None:
        self.is_body_complete = True  # of the request whose head was read last
        self._buffer = bytearray()
        self._num_scanned = 0  # bytes of an incomplete head that are already checked
        self._may_skip_line = True
        self._num_left: int | None = 0  # bytes of the body or chunk; None: the end of a chunk is next
        self._is_chunked = False
        self._is_in_trailer = False
        self._num_trailer_bytes = 0
        self._num_chunk_bytes = 0  # of content
        self._num_overhead_bytes = 0  # of chunk sizes, extensions and line ends

    @property
    def num_buffered(self) -> int:
        """Bytes that were pushed but not read."""
        return len(self._buffer)

    @property
    def is_in_head(self) -> bool:
        """Whether a part of the next head has arrived; an empty line between requests does not count."""
        return self.is_body_complete and bool(self._buffer) and not self._is_empty_line()

    def push(self, data: bytes) -> None:
        """Add received bytes."""
        self._buffer += data

    def read_head(self) -> RequestHead | None:
        """Return the next head, None if it is incomplete; raises FramingError.

        The body of the previous request must be complete.
        """
        assert self.is_body_complete
        buffer = self._buffer
        if self._may_skip_line and buffer.startswith(b"\r\n"):  # old clients end a body with one (RFC 9112, 2.2)
            del buffer[:2]
            self._may_skip_line = False
        end = buffer.find(b"\r\n\r\n", max(0, self._num_scanned - 3))
        if max(end + 4, 0 if end >= 0 else len(buffer)) > MAX_HEAD_BYTES:
            raise FramingError(f"The request head is larger than {MAX_HEAD_BYTES} bytes.", 431)
        if end < 0:
            if not self._is_empty_line() and _BROKEN_LINE.search(buffer, max(0, self._num_scanned - 1)):
                raise FramingError(_BROKEN_TEXT)
            self._num_scanned = len(buffer)
            return None
        text = bytes(buffer[:end])
        del buffer[: end + 4]
        self._num_scanned = 0
        self._may_skip_line = True
        self.is_body_complete = False  # stays so if the head is invalid
        head = _parse_head(text)
        self._expect_body(head.num_body_bytes)
        return head

    def read_body(self) -> bytes:
        """Return the part of the body that has arrived since the last call; raises FramingError.

        `is_body_complete` says whether it was the last part.
        """
        if self.is_body_complete:
            return b""
        if self._is_chunked:
            return self._read_chunks()
        assert self._num_left is not None
        body = bytes(self._buffer[: self._num_left])
        del self._buffer[: self._num_left]
        self._num_left -= len(body)
        self.is_body_complete = self._num_left == 0
        return body

    def _is_empty_line(self) -> bool:
        return self._may_skip_line and bytes(self._buffer[:3]) in (b"\r", b"\r\n")

    def _expect_body(self, num_body_bytes: int | None) -> None:
        self.is_body_complete = num_body_bytes == 0
        self._is_chunked = num_body_bytes is None
        self._num_left = num_body_bytes or 0
        self._is_in_trailer = False
        self._num_trailer_bytes = self._num_chunk_bytes = self._num_overhead_bytes = 0

    def _read_chunks(self) -> bytes:
        data = bytes(self._buffer)
        parts: list[bytes] = []
        position = 0
        while not (self.is_body_complete or self._is_in_trailer):
            if self._num_left is None:
                if len(data) - position < 2 and b"\r\n".startswith(data[position:]):
                    break
                if not data.startswith(b"\r\n", position):
                    raise FramingError("A chunk of the body does not match its size.")
                position += 2
                self._num_left = 0
            elif self._num_left > 0:
                part = data[position : position + self._num_left]
                if not part:
                    break
                parts.append(part)
                position += len(part)
                self._num_left = self._num_left - len(part) or None
            else:
                line = _CHUNK_LINE.match(data, position)
                if line is None:
                    if b"\n" in data[position:] or len(data) - position > MAX_CHUNK_LINE_BYTES:
                        raise FramingError("A chunk of the body does not start with its size.")
                    break
                self._count_chunk(int(line[1], 16), line.end() - position)
                position = line.end()
        if self._is_in_trailer:
            position = self._skip_trailer(data, position)
        del self._buffer[:position]
        return b"".join(parts)

    def _count_chunk(self, num_bytes: int, num_line_bytes: int) -> None:
        """Start a chunk. The number of very small chunks is limited, since each one costs time."""
        if num_line_bytes > MAX_CHUNK_LINE_BYTES:
            raise FramingError(f"The line before a chunk is longer than {MAX_CHUNK_LINE_BYTES} bytes.")
        self._num_chunk_bytes += num_bytes
        self._num_overhead_bytes += num_line_bytes + 2
        if self._num_overhead_bytes > FREE_CHUNK_OVERHEAD_BYTES + self._num_chunk_bytes // 8:
            raise FramingError("The body has too many small chunks. Send fewer and larger ones, or a Content-Length.")
        self._num_left = num_bytes
        self._is_in_trailer = num_bytes == 0

    def _skip_trailer(self, data: bytes, position: int) -> int:
        """Return the end of the trailer, or the start of its first incomplete line. Its fields are ignored."""
        while (end := data.find(b"\r\n", position)) >= 0:
            line = data[position:end]
            self._num_trailer_bytes += len(line) + 2
            position = end + 2
            if self._num_trailer_bytes > MAX_TRAILER_BYTES:
                break
            if not line:
                self.is_body_complete = True
                return position
            if line.translate(None, _CONTROL_BYTES) != line:
                raise FramingError("The trailer of the body has a control character.")
            _field(line)
        if self._num_trailer_bytes + len(data) - position > MAX_TRAILER_BYTES:
            raise FramingError(f"The trailer of the body is larger than {MAX_TRAILER_BYTES} bytes.", 431)
        if b"\n" in data[position:]:
            raise FramingError("A line of the trailer ends without CRLF.")
        return position


def _parse_head(text: bytes) -> RequestHead:
    """Parse a head without its last two CRLFs."""
    lines = text.split(b"\r\n")
    line = _REQUEST_LINE.fullmatch(lines[0])
    if line is None:
        raise FramingError("The first line is not a request line, `METHOD target HTTP/1.1`.")
    method, target, version = line[1].decode(), line[2], line[3].decode()
    if version not in ("1.0", "1.1"):
        raise FramingError(f"HTTP/{version} is not supported; use HTTP/1.1.", 505)
    if method == "CONNECT":
        raise FramingError("The method CONNECT is not supported: this server is not a proxy.", 501)
    if len(text.translate(None, _CONTROL_BYTES)) != len(text) - 2 * (len(lines) - 1):  # more than the line ends
        raise FramingError(_BROKEN_TEXT)
    headers = [_field(line) for line in lines[1:]]
    framing: dict[bytes, list[bytes]] = {}
    for name, value in headers:
        if name in _FRAMING_NAMES:
            framing.setdefault(name, []).append(value)
    hosts = framing.get(b"host", [])
    if len(hosts) > 1 or (not hosts and version == "1.1"):
        raise FramingError("A request needs exactly one Host header.")
    path, query, authority = _split_target(method, target)
    if authority is not None:  # it replaces the header (RFC 9112, 3.2.2)
        headers = [field for field in headers if field[0] != b"host"] + [(b"host", authority)]
    num_body_bytes = _body_length(version, framing)
    expectations = [value.lower() for value in framing.get(b"expect", [])] if version == "1.1" else []
    if expectations not in ([], [b"100-continue"]):
        raise FramingError("The only supported expectation is `Expect: 100-continue`.", 417)
    connection = b",".join(framing.get(b"connection", [])).lower().split(b",")
    return RequestHead(
        method=method,
        path=path,
        query=query,
        version=version,
        headers=headers,
        num_body_bytes=num_body_bytes,
        keeps_alive=version == "1.1" and b"close" not in map(bytes.strip, connection),
        expects_continue=bool(expectations) and num_body_bytes != 0,
    )


def _field(line: bytes) -> tuple[bytes, bytes]:
    """Return the lower-case name of a header, and its value."""
    name, colon, value = line.partition(b":")
    if not colon or not name or name.translate(None, _NAME_BYTES):
        if line.startswith((b" ", b"\t")):
            raise FramingError("A header is folded over several lines. Send it on one line.")
        raise FramingError("A header is not of the form `name: value`.")
    return name.lower(), value.strip(b" \t")


def _split_target(method: str, target: bytes) -> tuple[bytes, bytes, bytes | None]:
    """Return the path, the query, and the host if the target names one."""
    if b"#" not in target:
        if target.startswith(b"/"):
            path, _, query = target.partition(b"?")
            return path, query, None
        if target == b"*" and method == "OPTIONS":
            return target, b"", None
        if absolute := _ABSOLUTE_TARGET.fullmatch(target):
            return absolute[2] or b"/", absolute[3] or b"", absolute[1]
    raise FramingError("The request target is neither a path nor an http URL.")


def _body_length(version: str, framing: dict[bytes, list[bytes]]) -> int | None:
    """Return the length of the body in bytes, None if it is chunked."""
    lengths, encodings = framing.get(b"content-length", []), framing.get(b"transfer-encoding", [])
    if encodings:
        if lengths:
            raise FramingError("The request has both a Content-Length and a Transfer-Encoding. Send one of them.")
        if version == "1.0":
            raise FramingError("HTTP/1.0 has no Transfer-Encoding. Send a Content-Length, or use HTTP/1.1.")
        names = [name.strip().lower() for name in b",".join(encodings).split(b",")]
        if names != [b"chunked"]:
            is_readable = names[-1] == b"chunked" and names.count(b"chunked") == 1
            raise FramingError("The only supported Transfer-Encoding is `chunked`.", 501 if is_readable else 400)
        return None
    if not lengths:
        return 0
    if len(lengths) > 1 or _LENGTH.fullmatch(lengths[0]) is None:
        raise FramingError("The Content-Length is not a single integer.")
    return int(lengths[0])
