"""Form data: multipart/form-data, decoded as it arrives.

Source: RFC 7578 (forms) and RFC 2046, section 5.1.1 (boundaries).
"""

import re
from dataclasses import dataclass

MAX_HEAD_BYTES = 8192  # of a part
MAX_PARTS = 16
MAX_BOUNDARY = 70  # characters

_PARAMETER = re.compile(r';[ \t]*([\w*-]+)=(?:"((?:\\.|[^"\\])*)"|([^\s;"]+))')
_END_OF_LINE = re.compile(rb"[ \t]*\r\n")
_PLAIN_ENCODINGS = ("7bit", "8bit", "binary")


class WrongForm(ValueError):
    """The bytes are no form."""


@dataclass(frozen=True)
class PartHead:
    """The beginning of a part."""

    name: str
    filename: str | None  # None: it is a field, not a file


@dataclass(frozen=True)
class PartData:
    """The next bytes of the part that began last."""

    data: bytes


Event = PartHead | PartData


def boundary_of(content_type: str) -> bytes | None:
    """Return the boundary in a content type; None if it is not that of a form. Raises WrongForm."""
    media_type, _, rest = content_type.partition(";")
    if media_type.strip().lower() != "multipart/form-data":
        return None
    boundary = _parameters(";" + rest).get("boundary", "")
    if not 0 < len(boundary) <= MAX_BOUNDARY or not boundary.isascii():
        raise WrongForm
    return boundary.encode()


class FormDecoder:
    """Decodes the bytes of a form in pieces of any size, and keeps no more than a head or a boundary of them."""

    def __init__(self, boundary: bytes) -> None:
        self.is_complete = False
        self._delimiter = b"\r\n--" + boundary
        self._buffer = bytearray(b"\r\n")  # the first boundary has no end of a line before it
        self._num_parts = 0
        self._state = self._skip_preamble

    def feed(self, data: bytes) -> list[Event]:
        """Return what the next bytes bring; raises WrongForm. Bytes after the form are dropped."""
        self._buffer += data
        events: list[Event] = []
        while not self.is_complete and self._state(events):
            pass
        return events

    def _skip_preamble(self, events: list[Event]) -> bool:  # noqa: ARG002  # it brings none
        _, is_found = self._before_delimiter()
        return is_found

    def _read_data(self, events: list[Event]) -> bool:
        before, is_found = self._before_delimiter()
        if before:
            events.append(PartData(before))
        return is_found

    def _before_delimiter(self) -> tuple[bytes, bool]:
        """Take the bytes that are before the delimiter, or cannot be in it, and return whether it is there."""
        place = self._buffer.find(self._delimiter)
        is_found = place >= 0
        if is_found:
            end = place + len(self._delimiter)
            self._state = self._read_delimiter
        else:
            place = end = max(len(self._buffer) - len(self._delimiter) + 1, 0)
        before = bytes(self._buffer[:place])
        del self._buffer[:end]
        return before, is_found

    def _read_delimiter(self, events: list[Event]) -> bool:  # noqa: ARG002
        """Read what follows a delimiter: two hyphens after the last part, else the end of the line."""
        if len(self._buffer) < 2:
            return False
        if self._buffer.startswith(b"--"):
            self.is_complete = True
            return False
        match = _END_OF_LINE.match(self._buffer)
        if match is None:
            if len(self._buffer) > MAX_HEAD_BYTES or self._buffer.strip(b" \t\r"):
                raise WrongForm
            return False
        del self._buffer[: match.end()]
        self._state = self._read_head
        return True

    def _read_head(self, events: list[Event]) -> bool:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(self._buffer) > MAX_HEAD_BYTES:
                raise WrongForm
            return False
        self._num_parts += 1
        if self._num_parts > MAX_PARTS or end > MAX_HEAD_BYTES:
            raise WrongForm
        events.append(_head(bytes(self._buffer[:end])))
        del self._buffer[: end + len(b"\r\n\r\n")]
        self._state = self._read_data
        return True


def _head(text: bytes) -> PartHead:
    """Return the head of a part; raises WrongForm."""
    headers: dict[str, str] = {}
    for line in text.decode("utf-8", "replace").split("\r\n"):
        name, colon, value = line.partition(":")
        if not colon:
            raise WrongForm
        headers[name.strip().lower()] = value.strip()
    kind, semicolon, rest = headers.get("content-disposition", "").partition(";")
    parameters = _parameters(semicolon + rest)
    if kind.strip().lower() != "form-data" or "name" not in parameters:
        raise WrongForm
    if headers.get("content-transfer-encoding", "binary").lower() not in _PLAIN_ENCODINGS:
        raise WrongForm
    return PartHead(parameters["name"], parameters.get("filename"))


def _parameters(text: str) -> dict[str, str]:
    return {name.lower(): quoted or token for name, quoted, token in _PARAMETER.findall(text)}
