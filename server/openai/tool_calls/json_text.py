"""JSON values in text that arrives in chunks: passed over, captured or decoded.

Python's words (`True`), a comma before a closing bracket and raw control characters in strings are accepted, too:
models write them, and the end of such a value is unambiguous. Raw control characters are captured escaped.
"""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from caravan.server.openai.tool_calls.text_source import Steps, TextSource

_STRING_CHARACTERS = re.compile(r'[^"\\\x00-\x1f]+')
_WORD = re.compile(r"[A-Za-z0-9+.\-]+")
_CLOSING = {"{": "}", "[": "]"}
_LONGEST_ESCAPE = 12  # characters: a surrogate pair


class NotJson(ValueError):
    """The text is not a JSON value, or not the expected one."""


def pass_value(source: TextSource) -> Steps[None]:
    """Pass a value of any kind; raises NotJson or CutOff."""
    closing: list[str] = []  # of the open objects and lists, the innermost last
    may_close = False
    while True:
        character = yield from source.skip_space()
        if may_close and character == closing[-1]:  # an empty one, or one with a comma at its end
            source.advance()
            closing.pop()
        else:
            if closing[-1:] == ["}"]:
                yield from pass_string(source)
                yield from pass_character(source, ":")
                character = yield from source.skip_space()
            if character in _CLOSING:
                source.advance()
                closing.append(_CLOSING[character])
                may_close = True
                continue
            if character == '"':
                yield from pass_string(source)
            else:
                yield from read_word(source)
        while closing:
            character = yield from source.skip_space()
            if character not in (",", closing[-1]):
                raise NotJson
            source.advance()
            if character == ",":
                may_close = True
                break
            closing.pop()
        if not closing:
            return


def pass_character(source: TextSource, expected: str) -> Steps[None]:
    """Pass white space and one character; raises NotJson if it is another one, or CutOff."""
    character = yield from source.skip_space()
    if character != expected:
        raise NotJson
    source.advance()


def pass_string(source: TextSource) -> Steps[None]:
    """Pass a string, quotation marks included; raises NotJson or CutOff."""
    yield from pass_character(source, '"')
    while True:
        character = yield from source.need()
        if source.take(_STRING_CHARACTERS):
            continue
        if character == '"':
            source.advance()
            return
        is_escaped = character == "\\"
        if is_escaped:
            source.advance()
            character = yield from source.need()
        if character < " ":
            source.replace_next(json.dumps(character)[1 + is_escaped : -1])
        else:
            source.advance()


def read_word(source: TextSource) -> Steps[str]:
    """Return a number, `true`, `null` or another bare word; raises NotJson or CutOff."""
    word = yield from source.take_all(_WORD)
    if not word:
        raise NotJson
    return word


def read_string(source: TextSource) -> Steps[str]:
    """Return the value of a string; raises NotJson or CutOff."""
    raw: list[str] = []
    with captured(source, raw.append):
        yield from pass_string(source)
    return decoded("".join(raw))


def decoded(raw: str) -> str:
    """Return the value of a JSON string; raises NotJson."""
    try:
        value = json.loads(raw)
        value.encode()
    except (ValueError, RecursionError):  # a lone surrogate is a ValueError, too
        raise NotJson from None
    if not isinstance(value, str):
        raise NotJson
    return value


def decoded_beginning(raw: str) -> str:
    """Return the value of a JSON string without its end; an incomplete escape is left out."""
    for length in range(len(raw), max(len(raw) - _LONGEST_ESCAPE, 0), -1):
        try:
            return decoded(raw[:length] + '"')
        except NotJson:
            continue
    return ""


@contextmanager
def captured(source: TextSource, sink: Callable[[str], None]) -> Iterator[None]:
    """Pass the text that is read inside to `sink`, chunk by chunk."""
    source.begin_capture(sink)
    try:
        yield
    finally:
        source.end_capture()


def text_of_object(text: str) -> str:
    """Return the text of an object as valid JSON; raises NotJson if it is not an object."""
    try:
        value = json.loads(text, strict=False)
        if not isinstance(value, dict):
            raise NotJson
        if not any(character < " " and character not in "\t\r\n" for character in text):
            return text
        written = json.dumps(value, ensure_ascii=False)
        written.encode()  # fails for half of a surrogate pair
    except (ValueError, RecursionError):
        raise NotJson from None
    return written
