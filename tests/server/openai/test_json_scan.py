"""Scanning a long JSON text: the same texts are taken and refused as when all of it is decoded at once."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from caravan.server.http.body import parse_json
from caravan.server.http.errors import ApiError
from caravan.server.http.json_scan import MAX_DEPTH, MAX_VALUES, WrongJson, scan_json

# Parts of which most sequences are nearly JSON.
PARTS = (
    *'{}[],:" \n',
    *("0", "-1", "12345678901234567890123", "1.5", "-0.0", "1e5", "1E-400", "1e999", "01", "1.", "-", "+1", ".5"),
    *("true", "false", "null", "NaN", "Infinity", "-Infinity", "nul"),
    *('"a"', '"a":', '"b":', '""', '"\\u0061":', '"é😀"', '"\\n\\"\\\\"', '"\\x"', '"\t"', "'a'"),
    *(
        '"\\ud83d\\ude00"',
        '"\\ud800"',
        '"\\udc00\\ud800"',
        '"\\ud83d\\u0041"',
        '"\\\\ud800"',
        '"\\u12"',
        "\ufeff",
        "\x00",
    ),
)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner),
)


def is_taken(text: bytes) -> bool:
    try:
        parse_json(text)
    except ApiError:
        return False
    return True


@given(st.lists(st.sampled_from(PARTS), max_size=12).map("".join))
@example("[1,2,]")
@example("[1, 2.5, -3 ,4e1]")
@example('{"a": [1,2], "\\u0061": 0}')
@example('{"a":{"b":1,"b":2}}')
@example('{"a":[],"b":{} }')
def test_threat_2_the_same_texts_are_taken_as_when_all_is_decoded(text: str) -> None:
    encoded = text.encode()
    if is_taken(encoded):
        scan_json(encoded)
    else:
        with pytest.raises(WrongJson):
            scan_json(encoded)


@given(st.binary(max_size=8))
def test_threat_2_bytes_that_are_not_utf8_are_refused_by_both(text: bytes) -> None:
    text = b'"' + text + b'"'
    if is_taken(text):
        scan_json(text)
    else:
        with pytest.raises(WrongJson):
            scan_json(text)


@pytest.mark.slow
@given(
    st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), VALUES),
    st.booleans(),
    st.sampled_from([None, 1]),
)
def test_each_field_is_found_and_decodes_to_its_value(
    fields: dict[str, Any], is_ascii: bool, indent: int | None
) -> None:
    text = json.dumps(fields, ensure_ascii=is_ascii, indent=indent).encode()
    spans = scan_json(text)
    assert spans is not None
    assert {name: msgspec.json.decode(text[span.start : span.end]) for name, span in spans.items()} == parse_json(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"a" 1}', "syntax error at byte 4"),
        ('{"a": }', "syntax error"),
        ('{"a": 1 "b": 2}', "syntax error"),
        ('{"a": 1]', "syntax error"),
        ("{1: 2}", "syntax error at byte 1"),
        ('{"a": [1}', "syntax error"),
        ('{"a": [{"b": 1]}', "syntax error"),
        ('{"a": "b', "syntax error"),
        ('{"a": 1} x', "syntax error"),
        ('{"a": [[1] 2]}', "syntax error"),
        ('{"a": "\\ud800"}', "lone surrogate"),
        ('{"a": {"b": 1, "\\u0062": 2}}', "duplicate key"),
        ('{"a": 1e999}', "a number out of range"),
        ('{"a": %s}' % ("1" * 5000), "too many digits"),
    ],
)
def test_what_is_wrong_with_a_text_is_named(text: str, words: str) -> None:
    with pytest.raises(WrongJson, match=words):
        scan_json(text.encode())
    assert not is_taken(text.encode())


def test_a_text_that_is_no_object_has_no_fields() -> None:
    for text in (b"[1]", b'"a"', b"1", b" null "):
        assert scan_json(text) is None
    assert scan_json(b" { } ") == {}


def test_what_a_field_holds_is_counted() -> None:
    spans = scan_json(b'{"a": [1, 2, 3], "b": {"c": ["x", {}], "d": null}, "e": 1}')
    assert spans is not None
    assert {name: (span.num_values, span.num_numbers) for name, span in spans.items()} == {
        "a": (2, 2),  # the last number of a list counts as any other value
        "b": (5, 0),
        "e": (1, 0),
    }


def test_strings_and_numbers_of_any_length_are_passed_over() -> None:
    text = json.dumps({"a": "x" * 3_000_000 + "\n" * 3000 + "é", "b": [*range(5000)], "c": 1}).encode()
    spans = scan_json(text)
    assert spans is not None
    assert spans["b"].num_numbers == 4999
    assert text[spans["c"].start : spans["c"].end] == b" 1"


@pytest.mark.slow
def test_threat_28_depth_and_number_of_values_are_bounded() -> None:
    deepest = b"[" * MAX_DEPTH + b"]" * MAX_DEPTH
    assert is_taken(deepest)
    assert scan_json(deepest) is None
    for too_deep in (b"[" + deepest + b"]", b'{"a":' * (MAX_DEPTH + 1) + b"1" + b"}" * (MAX_DEPTH + 1)):
        assert not is_taken(too_deep)
        with pytest.raises(WrongJson, match=f"the limit is {MAX_DEPTH} levels"):
            scan_json(too_deep)
    with pytest.raises(WrongJson, match=f"more than {MAX_VALUES}"):
        scan_json(b"[" + b"[]," * MAX_VALUES + b"[]]")
