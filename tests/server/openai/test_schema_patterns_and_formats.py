"""Patterns and formats of strings: at most as wide as ECMAScript, Python and the standards have them."""

import calendar
import json
import random
import re

import jsonschema
import jsonschema_rs
import pytest

from caravan.server.openai.structured_output.schema_error import SchemaError
from caravan.server.openai.structured_output.schema_formats import FORMATS
from caravan.server.openai.structured_output.schema_pattern import rewritten_patterns
from tests.support.schema_samples import TEXTS, accepts, matcher, sampled_texts, written

ATOMS = [
    *("a", "b", "c", "ab", ".", r"\d", r"\w", r"\s", r"\D", r"\W", r"\S", "[ab]", "[^a]", "[a-c]", r"[\w-]", r"[^\s]"),
    *(
        r"[^\D]",
        r"[\]\[&]",
        r"\-",
        r"\/",
        r"\.",
        "^",
        "$",
        "(a)",
        "(?:b)",
        r"\x61",
        r"\u0062",
        "-",
        "&",
        r"\n",
        "(?P<n>a)",
    ),
]


def random_pattern(rng: random.Random, depth: int) -> str:
    parts = []
    for _ in range(rng.randint(1, 3)):
        atom = f"({random_pattern(rng, depth - 1)})" if depth and rng.random() < 0.3 else rng.choice(ATOMS)
        if rng.random() < 0.3 and atom not in "^$":
            atom += rng.choice(["*", "+", "?", "{2}", "{1,2}", "{0,}", "*?"])
        parts.append(atom + ("|" if rng.random() < 0.15 else ""))
    return "".join(parts)


def test_a_pattern_matches_nothing_that_python_does_not_and_all_of_ascii_that_python_does() -> None:
    rng = random.Random(0)
    num_patterns = 0
    while num_patterns < 250:
        pattern = random_pattern(rng, 2)
        try:
            expected = re.compile(pattern)
            made = matcher({"type": "string", "pattern": pattern})
        except (re.error, ValueError):
            continue
        num_patterns += 1
        more = ["".join(rng.choices("abc1 -&[].\n", k=rng.randint(0, 4))) for _ in range(20)]
        for text in TEXTS + more:
            accepted = accepts(made, written(text))
            assert not accepted or expected.search(text), (pattern, text)
            assert accepted or not (text.isascii() and text.isprintable() and expected.search(text)), (pattern, text)


@pytest.mark.parametrize(
    ("pattern", "right", "wrong"),
    [
        ("[a&&b]", "&", "c"),
        ("[[a]", "[", "b"),
        (r"^\<a\>$", "<a>", "a"),
        (r"^[\b]?x$", "x", "bx"),
        (r"^\0?\t\cJ?$", "\t", "0"),
        (r"^\ud83d\ude00$", "😀", "?"),
        (r"^\p{Lu}+$", "ÄB", "äb"),
        ("^a{b}$", "a{b}", "ab"),
        (r"^(?=.*[A-Z])(?=.*\d).{3,}$", "aB1", "ab1"),
        (r"^(?!^[-+.]*$)[+-]?0*\d*\.?\d*$", "-1.5", "+."),
    ],
)
def test_a_pattern_means_what_it_means_in_ecmascript(pattern: str, right: str, wrong: str) -> None:
    made = matcher({"type": "string", "pattern": pattern})
    assert accepts(made, written(right))
    assert not accepts(made, written(wrong))


@pytest.mark.parametrize(
    "pattern",
    [
        r"(a)\1",
        r"\bword\b",
        "(?i)a",
        "(?<=a)b",
        "a++",
        "(a",
        "a)",
        "[a",
        "a{2}{3}",
        "[]a]",
        "*a",
        "[b-a]",
        r"\Aa\Z",
        "a{,3}",
        r"\ud83d",
        "(" * 60 + ")" * 60,
        "(?=a)b",
        "^(?=a)b|c",
        "x{3,1}",
        r"\pL",
        3,
    ],
)
def test_a_pattern_that_engines_read_differently_or_not_at_all_is_refused(pattern: str) -> None:
    with pytest.raises(SchemaError, match="pattern"):
        rewritten_patterns(pattern)


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_texts_of_a_format_satisfy_two_checkers(name: str) -> None:
    made = matcher({"type": "string", "format": name})
    strict = jsonschema_rs.Draft202012Validator({"type": "string", "format": name}, validate_formats=True)
    texts = list(sampled_texts(made, random.Random(1), 25, length=90))
    assert len(texts) > 10
    for text in texts:
        value = json.loads(text)
        assert re.search(FORMATS[name], value)
        assert strict.is_valid(value), value
        assert jsonschema.Draft202012Validator.FORMAT_CHECKER.conforms(value, name), value


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("time", ["12:00:00Z", "23:59:59.123+02:00"]),
        ("date-time", ["2024-01-01T00:00:00Z", "2024-02-29T00:00:00.5-08:00"]),
        ("duration", ["P1D", "PT1H30M", "P1Y2M3DT4H5M6S", "P2W"]),
        ("email", ["joe.bloggs@example.com", "a+b@mail.example.co.uk"]),
        ("hostname", ["localhost", "www.example.com", "my-host.example.org"]),
        ("ipv4", ["127.0.0.1", "255.255.255.255"]),
        ("ipv6", ["::", "::1", "2001:db8::8a2e:370:7334", "1:2:3:4:5:6:7:8", "1:2:3:4:5:6:7::"]),
        ("uri", ["https://example.com", "http://example.com:8080/a/b?c=d#e", "mailto:joe@example.com", "urn:isbn:12"]),
        ("uuid", ["123e4567-e89b-12d3-a456-426614174000"]),
        ("base64", ["", "aGVsbG8=", "YQ=="]),
        ("json-pointer", ["", "/a/b~1c"]),
    ],
)
def test_usual_texts_of_a_format_are_accepted(name: str, values: list[str]) -> None:
    made = matcher({"type": "string", "format": name})
    assert [value for value in values if not accepts(made, written(value))] == []


def test_a_date_is_one_of_the_calendar() -> None:
    date, date_time = matcher({"format": "date", "type": "string"}), matcher({"format": "date-time", "type": "string"})
    for year in (1, 4, 100, 400, 1600, 1700, 1900, 1999, 2000, 2004, 2023, 2024, 2100, 2400, 9999):
        for month in range(1, 13):
            for day in (28, 29, 30, 31):
                text = f"{year:04}-{month:02}-{day:02}"
                is_date = day <= calendar.monthrange(year, month)[1]
                assert accepts(date, f'"{text}"') == is_date
                assert accepts(date_time, f'"{text}T12:00:00Z"') == is_date
    assert not accepts(date, '"0000-01-01"')
