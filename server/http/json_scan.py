"""Validate a long JSON text without building objects, and find the spans and sizes of its fields.

A JSON decoder holds the GIL for the whole text, and creates an object for every value. The scan reads a text in short
chunks, so that other threads can run in between, and stores only the spans of the outermost object's fields. It accepts
what `parse_json` accepts, up to a number of values.
"""

import codecs
import json
import math
import re
from dataclasses import dataclass

MAX_DEPTH = 128  # levels of lists and objects
MAX_VALUES = 2**17  # without plain numbers: a list of token ids has many
TOO_DEEP = f"The body is nested too deeply; the limit is {MAX_DEPTH} levels."

_CHUNK_BYTES = 65536
_SPACE = rb"[ \t\n\r]*+"
_PLAIN = rb'[^"\\\x00-\x1f]{1,4096}+'
_PAIR = rb"[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"  # of surrogates: one character
_UNICODE = rb"u(?:[0-9a-cefA-CEF][0-9a-fA-F]{3}|[dD][0-7][0-9a-fA-F]{2}|" + _PAIR + rb")"

# Each expression matches a limited length: the GIL is held meanwhile.
_TEXT = re.compile(rb"(?:" + _PLAIN + rb'|\\(?:["\\/bfnrt]|' + _UNICODE + rb")){1,256}+")
_LONE_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F][0-9a-fA-F]{2}")
_VALUE = re.compile(
    _SPACE + rb"(?:(?P<open>[\[{])|(?P<quote>\")|(?P<literal>true|false|null)"
    rb"|(?P<number>-?(?:0|[1-9][0-9]*+)(?:\.[0-9]++)?+(?:[eE][-+]?[0-9]++)?+))"
)
_NUMBERS = re.compile(rb"(?:" + _SPACE + rb"-?(?:0|[1-9][0-9]{0,17}+)(?:\.[0-9]{1,17}+)?+" + _SPACE + rb",){1,1024}+")
_QUOTE = re.compile(_SPACE + rb'"')
_COLON = re.compile(_SPACE + rb":")
_NEXT = re.compile(_SPACE + rb"([,\]}])")
_END_OF_LIST = re.compile(_SPACE + rb"\]")
_END_OF_OBJECT = re.compile(_SPACE + rb"\}")
_OBJECT = re.compile(_SPACE + rb"\{")
_END = re.compile(_SPACE + rb"\Z")
_MAX_DIGITS = 4300  # Python's limit for an integer


class WrongJson(ValueError):
    """The text is invalid; the message is a sentence about the body."""


@dataclass(frozen=True)
class FieldSpan:
    """The span of a field's value in the text, and the number of values in it."""

    start: int
    end: int
    num_values: int  # other than plain numbers
    num_numbers: int


def scan_json(text: bytes) -> dict[str, FieldSpan] | None:
    """Return the fields of the object in `text`, None if it is another kind of value; raises WrongJson."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        for start in range(0, len(text), _CHUNK_BYTES):
            decoder.decode(text[start : start + _CHUNK_BYTES])
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        raise WrongJson("The body is not UTF-8.") from None
    return _Scan(text).run()


class _Scan:
    """One pass over a text. The methods take the start offset of an element and return its end."""

    def __init__(self, text: bytes) -> None:
        self._text = text
        self._num_values = 0
        self._num_numbers = 0

    def run(self) -> dict[str, FieldSpan] | None:
        """Return the fields of the outermost object."""
        fields: dict[str, FieldSpan] | None = None
        if match := _OBJECT.match(self._text):
            fields = {}
            at = self._fields(match.end(), fields)
        else:
            at = self._value(0, 0)
        if _END.match(self._text, at) is None:
            raise self._not_json(at)
        return fields

    def _fields(self, at: int, fields: dict[str, FieldSpan]) -> int:
        """Scan the outermost object into `fields`."""
        if match := _END_OF_OBJECT.match(self._text, at):
            return match.end()
        keys: set[bytes] = set()
        mark = b","
        while mark == b",":
            key, start = self._key(at, keys)
            counts = self._num_values, self._num_numbers
            end = self._value(start, 1)
            num_values, num_numbers = self._num_values - counts[0], self._num_numbers - counts[1]
            fields[key.decode()] = FieldSpan(start, end, num_values, num_numbers)
            mark, at = self._next(end)
        if mark != b"}":
            raise self._not_json(at - 1)
        return at

    def _value(self, at: int, depth: int) -> int:
        """Skip a value at depth `depth`, including nested values."""
        text = self._text
        keys_of_open: list[set[bytes] | None] = []  # the keys of each open object, None for a list
        while True:
            match = _VALUE.match(text, at)
            if match is None:
                raise self._not_json(at)
            at = match.end()
            self._count()
            bracket = match["open"]
            if bracket is not None:
                if depth + len(keys_of_open) == MAX_DEPTH:
                    raise WrongJson(TOO_DEEP)
                end = (_END_OF_LIST if bracket == b"[" else _END_OF_OBJECT).match(text, at)
                if end is None:
                    keys_of_open.append(None if bracket == b"[" else set())
                    at = self._item(at, keys_of_open[-1])
                    continue
                at = end.end()
            elif match["quote"]:
                at = self._string(at)
            elif number := match["number"]:
                _check_number(number)
            at = self._close(at, keys_of_open)
            if not keys_of_open:
                return at
            at = self._item(at, keys_of_open[-1])

    def _close(self, at: int, keys_of_open: list[set[bytes] | None]) -> int:
        """Skip the closing brackets after a value, and the comma before the next one."""
        while keys_of_open:
            mark, at = self._next(at)
            if mark == b",":
                break
            if mark != (b"]" if keys_of_open[-1] is None else b"}"):
                raise self._not_json(at - 1)
            keys_of_open.pop()
        return at

    def _item(self, at: int, keys: set[bytes] | None) -> int:
        """Skip to the next value: numbers of a list, or the key in an object."""
        if keys is not None:
            return self._key(at, keys)[1]
        while match := _NUMBERS.match(self._text, at):
            self._num_numbers += self._text.count(b",", at, match.end())
            at = match.end()
        return at

    def _key(self, at: int, keys: set[bytes]) -> tuple[bytes, int]:
        """Return a key, which must not be in `keys`, and the offset after its colon."""
        match = _QUOTE.match(self._text, at)
        if match is None:
            raise self._not_json(at)
        end = self._string(match.end())
        key = self._text[match.end() : end - 1]
        if b"\\" in key:
            key = str(json.loads(b'"' + key + b'"')).encode()
        if key in keys:
            raise WrongJson("An object in the body has a duplicate key.")
        keys.add(key)
        colon = _COLON.match(self._text, end)
        if colon is None:
            raise self._not_json(end)
        return key, colon.end()

    def _string(self, at: int) -> int:
        """Skip a string after its opening quote."""
        while match := _TEXT.match(self._text, at):
            at = match.end()
        if self._text[at : at + 1] == b'"':
            return at + 1
        if _LONE_SURROGATE.match(self._text, at):
            raise WrongJson("The body has a lone surrogate, which is not a character.")
        raise self._not_json(at)

    def _next(self, at: int) -> tuple[bytes, int]:
        """Return the punctuation after a value, and the offset after it."""
        match = _NEXT.match(self._text, at)
        if match is None:
            raise self._not_json(at)
        return match[1], match.end()

    def _count(self) -> None:
        self._num_values += 1
        if self._num_values > MAX_VALUES:
            raise WrongJson(f"The body has more than {MAX_VALUES} strings, lists and objects; split the request.")

    def _not_json(self, at: int) -> WrongJson:
        return WrongJson(f"The body is not JSON: syntax error at byte {at}.")


def _check_number(number: bytes) -> None:
    if not number.lstrip(b"-").isdigit():
        if not math.isfinite(float(number)):
            raise WrongJson("The body has a number out of range.")
    elif len(number.lstrip(b"-")) > _MAX_DIGITS:
        raise WrongJson("The body has a number with too many digits.")
