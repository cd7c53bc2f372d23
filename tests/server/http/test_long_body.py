"""Decoding a long body: the values of unknown fields are emptied, and its objects count before they are made."""

import json
from typing import Any

import pytest

from caravan.server.http.body import _decode_long, _object_bytes
from caravan.server.http.body_memory import BodyMemory
from caravan.server.http.errors import ApiError
from caravan.server.http.json_scan import FieldSpan

KNOWN = frozenset({"prompt"})


async def decoded(body: bytes) -> tuple[Any, int]:
    """Return the value and the bytes that stay reserved for it."""
    memory = BodyMemory()
    reservation = memory.reserve("key")
    value = await _decode_long(body, KNOWN, reservation)
    return value, memory.num_bytes


async def test_values_of_unknown_fields_are_emptied() -> None:
    fields = {"prompt": ["a"], "list": [1], "object": {"a": 1}, "long": "x" * 10_000, "short": "x", "number": 1.5}
    value, _ = await decoded(json.dumps(fields).encode())
    assert value == {"prompt": ["a"], "list": [], "object": {}, "long": "", "short": "x", "number": 1.5}


@pytest.mark.parametrize(
    ("body", "value"), [(b" [1, 2]", []), (b'"a"', "a"), (b"1", 1), (b'"' + b"a" * 10_000 + b'"', "")]
)
async def test_a_body_that_is_no_object_is_emptied_as_a_whole(body: bytes, value: object) -> None:
    assert await decoded(body) == (value, 0)


async def test_a_body_that_is_not_json_is_400() -> None:
    with pytest.raises(ApiError) as caught:
        await decoded(b'{"prompt": }')
    assert (caught.value.status, "syntax error at byte" in caught.value.message) == (400, True)


async def test_objects_that_would_exceed_the_memory_are_not_made() -> None:
    body = json.dumps({"prompt": [[]] * 100_000}).encode()
    memory = BodyMemory(max_bytes=2 * len(body))
    assert memory.reserve("other").resize(100_000)  # the only body may exceed the limit
    with pytest.raises(ApiError) as caught:
        await _decode_long(body, KNOWN, memory.reserve("key"))
    assert caught.value.status == 429
    assert memory.num_bytes == 100_000


@pytest.mark.parametrize(("text", "bytes_of_character"), [("a", 1), ("é", 2), ("😀", 4)])
def test_a_text_counts_as_python_stores_it(text: str, bytes_of_character: int) -> None:
    body = text.encode() * 100
    assert _object_bytes(body, FieldSpan(0, len(body), 0, 0)) == len(body) * bytes_of_character
