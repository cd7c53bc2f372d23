"""Checks of the lines of an input file."""

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from caravan.server.batches.input_lines import CheckedLines, check_lines, read_line
from caravan.server.batches.settings import BatchLimits
from caravan.server.http.body_memory import SMALL_BYTES
from tests.server.batches.open_batches import a_line
from tests.server.openai.api import COMPLETIONS

LONG = "x" * SMALL_BYTES


def check(folder: Path, *lines: bytes) -> CheckedLines:
    path = folder / "in.jsonl"
    path.write_bytes(b"\n".join(lines))
    return check_lines(path, COMPLETIONS, BatchLimits())


def line_of(**fields: Any) -> bytes:
    return json.dumps(a_line() | fields).encode()


def test_a_long_line_is_checked_without_objects_for_its_values(tmp_path: Path) -> None:
    for lists in ("[" + "[]," * 100_000 + "[]]", "[" + "1," * 2_000_000 + "1]"):
        body = b'{"model": "fake", "more": %s}' % lists.encode()
        path = tmp_path / "in.jsonl"
        path.write_bytes(b'{"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": %s}' % body)
        tracemalloc.start()
        try:
            checked = check_lines(path, COMPLETIONS, BatchLimits())
            peak_bytes = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert not checked.errors
        assert peak_bytes < 6 * len(body)
        (line,) = checked.lines
        assert bytes(read_line(path, line.start, line.num_bytes).body) == body


@pytest.mark.parametrize("filler", ["", LONG])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"model": "fake", "prompt": "FILLER"}', None),
        ('{"prompt": "FILLER", "stream": false}', None),
        ('{"prompt": "FILLER", "stream": null}', None),
        ('{"prompt": "FILLER", "stream": [  ]}', None),
        ('{"prompt": "FILLER", "stream": true}', "`stream` is set"),
        ('{"stream": {"a": 1}, "prompt": "FILLER"}', "`stream` is set"),
        ('{"stream": "FILLERx"}', "`stream` is set"),
        ('{"a": 1, "a": "FILLER"}', "duplicate key"),
        ('{"a": "FILLER\\ud800"}', "lone surrogate"),
        ('{"a": ["FILLER", NaN]}', "The line"),
        ('{"a": ["FILLER" 1]}', "The line is not JSON"),
        ('["FILLER"]', "`body` "),
    ],
)
def test_a_long_line_is_judged_as_a_short_one(tmp_path: Path, filler: str, text: str, message: str | None) -> None:
    line = line_of(body={"PLACE": 1}).replace(b'{"PLACE": 1}', text.replace("FILLER", filler).encode())
    checked = check(tmp_path, line)
    if message is None:
        assert (checked.errors, checked.lines[0].custom_id) == ([], "one")
    else:
        assert message in checked.errors[0].message
        assert not checked.lines


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (line_of(custom_id=LONG), "`custom_id` has more than 8192 bytes"),
        (line_of(custom_id="\U0001f600" * 512, body={"prompt": LONG}), None),
        (line_of(custom_id="\U0001f600" * 513, body={"prompt": LONG}), "a text of 1 to 512 characters"),
        (line_of(url=[1] * SMALL_BYTES), "`url` has more than 8192 bytes"),
        (line_of(more=LONG), 'Unknown field "more".'),
        (json.dumps([LONG]).encode(), "The line is a list or a text; it must be an object."),
        (json.dumps({"custom_id": "a", "body": {"prompt": LONG}}).encode(), "`method` is missing"),
    ],
)
def test_a_wrong_field_of_a_long_line_is_named(tmp_path: Path, line: bytes, message: str | None) -> None:
    checked = check(tmp_path, line)
    messages = [error.message for error in checked.errors]
    assert not messages if message is None else message in messages[0]
