"""The answers to lines, and the files of them."""

import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import msgspec

from caravan.server.batches.file_store import NewFile, PartFile
from caravan.server.batches.journal import open_reader

_WRITTEN_BYTES = 2**20  # at once

NO_RESPONSE = 0  # status of an answer without a response, whose body is a LineError

Part = Literal["completed", "failed", "all"]
Outcome = Literal["answered", "engine ended", "not now"]


@dataclass(frozen=True)
class LineAnswer:
    """The HTTP response to a line, or the reason why there is none."""

    status_code: int
    request_id: str
    body: bytes  # JSON
    outcome: Outcome = "answered"  # not now: a limit or a missing engine, which says nothing about the line
    id: str = field(default_factory=lambda: f"batch_req_{uuid.uuid4().hex}")


class LineError(msgspec.Struct):
    """Why a line has no response."""

    code: str
    message: str

    def answer(self) -> LineAnswer:
        """Return the answer to a line that has this error of its own."""
        return LineAnswer(NO_RESPONSE, "", msgspec.json.encode(self))


class _Response(msgspec.Struct):
    status_code: int
    request_id: str
    body: msgspec.Raw


class _OutputLine(msgspec.Struct):
    id: str
    custom_id: str
    response: _Response | None
    error: LineError | None


_CONDITIONS: dict[Part, str] = {
    "completed": "status_code = 200",
    "failed": "status_code IS NULL OR status_code != 200",
    "all": "1",
}


def write_answers(file: PartFile, journal: Path, batch_id: str, part: Part, unanswered: LineError) -> NewFile | None:
    """Write the answers of a batch in the order of its lines; None if there are none of this `part`.

    Lines without a response get the error `unanswered`. The file is complete, but not in the journal. Raises
    OSError, after which there is no file.
    """
    try:
        data = bytearray()
        for line in _output_lines(journal, batch_id, part, unanswered):
            data += msgspec.json.encode(line) + b"\n"
            if len(data) >= _WRITTEN_BYTES:
                file.write(bytes(data))
                data.clear()
        file.write(bytes(data))
        if file.num_bytes:
            return file.complete()
    except BaseException:
        file.discard()
        raise
    file.discard()
    return None


def _output_lines(journal: Path, batch_id: str, part: Part, unanswered: LineError) -> Iterator[_OutputLine]:
    connection = open_reader(journal)
    try:
        columns, condition = "id, custom_id, status_code, request_id, body", _CONDITIONS[part]
        query = f"SELECT {columns} FROM lines WHERE batch_id = ? AND ({condition}) ORDER BY number"  # noqa: S608
        rows = connection.execute(query, (batch_id,))
        for row in rows:
            if row["status_code"] is None:
                yield _OutputLine(f"batch_req_{uuid.uuid4().hex}", row["custom_id"], None, unanswered)
            elif row["status_code"] == NO_RESPONSE:
                error = msgspec.json.decode(row["body"], type=LineError)
                yield _OutputLine(row["id"], row["custom_id"], None, error)
            else:
                response = _Response(row["status_code"], row["request_id"], msgspec.Raw(row["body"]))
                yield _OutputLine(row["id"], row["custom_id"], response, None)
    finally:
        connection.close()
