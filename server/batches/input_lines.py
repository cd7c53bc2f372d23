"""The lines of a batch's input file: checked all together, then read one by one."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, get_args

import msgspec

from caravan.server.batches.objects import BatchError, Endpoint
from caravan.server.batches.settings import BatchLimits
from caravan.server.http.body import parse_json
from caravan.server.http.body_memory import SMALL_BYTES
from caravan.server.http.errors import ApiError, shown
from caravan.server.http.json_scan import WrongJson, scan_json

MAX_ERRORS = 100  # that are reported
MAX_CUSTOM_ID = 512  # characters
_FIELDS = ("custom_id", "method", "url", "body")
_MAX_FIELD = 8192  # bytes of a field of a long line, except `body`; a custom_id in escapes is shorter


class InputLine(NamedTuple):
    """Where a line is in the input file, and its name."""

    number: int  # from 1
    custom_id: str
    start: int  # bytes
    num_bytes: int


class LineRequest(msgspec.Struct):
    """The request in a line, as it was sent."""

    url: str
    body: msgspec.Raw


@dataclass
class CheckedLines:
    """The lines of a file, and the first problems."""

    lines: list[InputLine]
    errors: list[BatchError]


def check_lines(path: Path, endpoint: str | None, limits: BatchLimits) -> CheckedLines:
    """Return the lines of a file, each with another `custom_id`, and what is wrong with them; raises OSError.

    `endpoint` is the url that all lines must have; None: any endpoint that a line can call. The bodies are validated
    when they run, except for `stream`, which no line can have.
    """
    checked = CheckedLines([], [])
    numbers: dict[str, int] = {}  # of the lines by custom_id
    for number, start, line in _lines(path, limits.max_line_bytes):
        try:
            if len(checked.lines) >= limits.max_lines:
                raise _Problem("too_many_lines", f"The file has more than {limits.max_lines} lines, the limit.")
            custom_id = _custom_id(line, endpoint, limits.max_line_bytes)
            if custom_id in numbers:
                raise _Problem(
                    "duplicate_custom_id",
                    f"The custom_id {shown(custom_id)} is that of line {numbers[custom_id]}.",
                    "custom_id",
                )
        except _Problem as problem:
            checked.errors.append(BatchError(code=problem.code, line=number, message=str(problem), param=problem.param))
            if len(checked.errors) == MAX_ERRORS or problem.code == "too_many_lines":
                break
            continue
        numbers[custom_id] = number
        checked.lines.append(InputLine(number, custom_id, start, len(line)))
    if not checked.lines and not checked.errors:
        checked.errors.append(BatchError(code="empty_file", line=None, message="The file has no lines."))
    return checked


def read_line(path: Path, start: int, num_bytes: int) -> LineRequest:
    """Return the request in a checked line; raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        line = os.pread(descriptor, num_bytes, start)
    finally:
        os.close(descriptor)
    return msgspec.json.decode(line, type=LineRequest)


class _Problem(Exception):
    """A line is wrong; the text is for the client."""

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.param = param


def _lines(path: Path, max_bytes: int) -> Iterator[tuple[int, int, bytes]]:
    """Yield the number, the place and the bytes of each line that is not empty; of a longer one `max_bytes` + 1."""
    start = 0
    with path.open("rb") as file:
        number = 0
        while line := file.readline(max_bytes + 1):
            number += 1
            first = line
            while not line.endswith(b"\n") and (more := file.readline(max_bytes)):
                line = more
            if first.strip():
                yield number, start, first
            start = file.tell()


def _custom_id(line: bytes, endpoint: str | None, max_bytes: int) -> str:
    """Return the name of a line; raises _Problem."""
    if len(line) > max_bytes:
        raise _Problem("line_too_long", f"The line has more than {max_bytes} bytes, the limit.")
    try:
        value = parse_json(line) if len(line) < SMALL_BYTES else _decode_long(line)
    except (ApiError, WrongJson) as error:
        text = error.message if isinstance(error, ApiError) else str(error)
        message = text.replace("The body", "The line").replace("the body", "the line")
        raise _Problem("invalid_json_line", message) from None
    if not isinstance(value, dict):
        raise _Problem("invalid_json_line", f"The line is {shown(value)}; it must be an object.")
    for name in _FIELDS:
        if name not in value:
            raise _Problem("missing_required_parameter", f"`{name}` is missing; it is required.", name)
    for name in value:
        if name not in _FIELDS:
            raise _Problem("unknown_parameter", f"Unknown field {shown(name)}.", name)
    custom_id, url, body = value["custom_id"], value["url"], value["body"]
    if not isinstance(custom_id, str) or not 0 < len(custom_id) <= MAX_CUSTOM_ID:
        raise _Problem(
            "invalid_custom_id",
            f"`custom_id` is {shown(custom_id)}; it must be a text of 1 to {MAX_CUSTOM_ID} characters.",
            "custom_id",
        )
    if value["method"] != "POST":
        raise _Problem("invalid_method", f'`method` is {shown(value["method"])}; it must be "POST".', "method")
    allowed = get_args(Endpoint) if endpoint is None else (endpoint,)
    if url not in allowed:
        raise _Problem("invalid_url", f"`url` is {shown(url)}; it must be {' or '.join(allowed)}.", "url")
    _check_body(body)
    return custom_id


def _decode_long(line: bytes) -> dict[str, Any]:
    """Return the fields of a long line, of `body` only `stream`: objects for all of it would take 30 times its bytes.

    Raises WrongJson or _Problem. A decoder holds the GIL, and so the event loop, until it has them all.
    """
    fields = scan_json(line)
    if fields is None:
        raise _Problem("invalid_json_line", "The line is a list or a text; it must be an object.")
    value: dict[str, Any] = {}
    for name, span in fields.items():
        text = line[span.start : span.end].strip()
        if name == "body" and text.startswith(b"{"):
            stream = msgspec.json.decode(text, type=_Streamed).stream
            value[name] = {} if stream is msgspec.UNSET else {"stream": _is_true(bytes(stream))}
        elif name in _FIELDS and len(text) > _MAX_FIELD:
            raise _Problem("invalid_json_line", f"`{name}` has more than {_MAX_FIELD} bytes and is no object.", name)
        else:
            value[name] = msgspec.json.decode(text) if name in _FIELDS else None
    return value


class _Streamed(msgspec.Struct):
    """The field of a body that a line cannot have."""

    stream: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


def _is_true(text: bytes) -> bool:
    return len(text) > _MAX_FIELD or bool(msgspec.json.decode(text))


def _check_body(body: Any) -> None:
    if not isinstance(body, dict):
        raise _Problem("invalid_body", f"`body` is {shown(body)}; it must be an object.", "body")
    if body.get("stream"):
        raise _Problem("invalid_body", "`stream` is set; a line of a batch cannot be streamed.", "body.stream")
