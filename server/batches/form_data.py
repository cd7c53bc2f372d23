"""Form data: multipart/form-data, decoded as it arrives by python-multipart.

Source: RFC 7578 (forms) and RFC 2046, section 5.1.1 (boundaries).
"""

from dataclasses import dataclass

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

MAX_HEAD_BYTES = 8192  # of a part
MAX_PARTS = 16
MAX_BOUNDARY = 70  # characters

_PLAIN_ENCODINGS = (b"7bit", b"8bit", b"binary")


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
    media_type, parameters = parse_options_header(content_type)
    if media_type != b"multipart/form-data":
        return None
    boundary = parameters.get(b"boundary", b"")
    if not 0 < len(boundary) <= MAX_BOUNDARY or not boundary.isascii():
        raise WrongForm
    return boundary


class FormDecoder:
    """Decodes the bytes of a form in pieces of any size, and keeps no more than a head or a boundary of them."""

    def __init__(self, boundary: bytes) -> None:
        self.is_complete = False
        self._num_parts = 0
        self._events: list[Event] = []
        self._name, self._value = b"", b""  # of the header that is being read
        self._headers: dict[bytes, bytes] = {}  # of the part
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin_part,
                "on_header_field": self._add_name,
                "on_header_value": self._add_value,
                "on_header_end": self._end_header,
                "on_headers_finished": self._end_headers,
                "on_part_data": self._add_data,
                "on_end": self._end,
            },
            max_header_size=MAX_HEAD_BYTES,
        )

    def feed(self, data: bytes) -> list[Event]:
        """Return what the next bytes bring; raises WrongForm. Bytes after the form are dropped."""
        self._events = []
        if not self.is_complete:
            try:
                self._parser.write(data)
            except FormParserError:
                raise WrongForm from None
        return self._events

    def _begin_part(self) -> None:
        self._num_parts += 1
        if self._num_parts > MAX_PARTS:
            raise WrongForm
        self._headers = {}

    def _add_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _add_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        self._headers[self._name.lower()] = self._value
        self._name, self._value = b"", b""

    def _end_headers(self) -> None:
        kind, parameters = parse_options_header(self._headers.get(b"content-disposition"))
        encoding = self._headers.get(b"content-transfer-encoding", b"binary").lower()
        if kind != b"form-data" or b"name" not in parameters or encoding not in _PLAIN_ENCODINGS:
            raise WrongForm
        filename = parameters.get(b"filename")
        self._events.append(PartHead(_text(parameters[b"name"]), None if filename is None else _text(filename)))

    def _add_data(self, data: bytes, start: int, end: int) -> None:
        self._events.append(PartData(data[start:end]))

    def _end(self) -> None:
        self.is_complete = True


def _text(value: bytes) -> str:
    return value.decode("utf-8", "replace")
