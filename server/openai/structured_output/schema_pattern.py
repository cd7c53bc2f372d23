r"""Patterns of JSON schemas, rewritten as regular expressions of the grammar library.

A `pattern` is ECMAScript's; clients check it with many engines, and the library has Rust's. The same text can mean
different things: `[a&&b]`, `[[a]]`, `\<` and `\h` differ, `.`, `\s`, `\w` and `\d` have different sets. So a pattern
is read here and written again with explicit sets. Where ECMAScript and Python disagree about a character, it is left
out: what matches here matches in both.
"""

import re
from collections.abc import Mapping
from typing import Any

from caravan.server.http.errors import shown
from caravan.server.openai.structured_output.pattern_cursor import PatternCursor
from caravan.server.openai.structured_output.schema_error import SchemaError
from caravan.server.openai.structured_output.schema_formats import FORMATS

_QUANTIFIER = re.compile(r"(?:[*+?]|\{(\d{1,6})(?:,(\d{0,6}))?\})")
_PROPERTY = re.compile(r"\{[A-Za-z0-9_]+(?:=[A-Za-z0-9_]+)?\}")
_NAMED_GROUP = re.compile(r"\?P?<[A-Za-z_]\w*>")
_CONTROL = {"t": 9, "n": 10, "v": 11, "f": 12, "r": 13}
_MAX_DEPTH = 50  # of groups

_SPACES = r"\x{9}-\x{D}\x{20}\x{A0}\x{1680}\x{2000}-\x{200A}\x{2028}\x{2029}\x{202F}\x{205F}\x{3000}"
# Of each class the characters that belong to it in ECMAScript and Python, and in one of them.
_NARROW = {"d": "0-9", "w": "0-9A-Za-z_", "s": _SPACES}
_WIDE = {
    "d": r"\p{Nd}",
    "w": r"\p{L}\p{N}\p{M}\p{Pc}",
    "s": _SPACES + r"\x{1C}-\x{1F}\x{85}\x{180E}\x{FEFF}",
}
_ECMASCRIPT = {"d": "0-9", "w": "0-9A-Za-z_", "s": _SPACES + r"\x{FEFF}"}
_DOT = r"[^\x{A}\x{D}\x{2028}\x{2029}]"

# Patterns with lookarounds that generators of schemas write, and patterns without that imply them.
_KNOWN: Mapping[str, str] = {
    # pydantic: a decimal number as a string
    r"^(?!^[-+.]*$)[+-]?0*\d*\.?\d*$": r"^[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)$",
    # zod: durations and e-mail addresses
    r"^P(?:(\d+W)|(?!.*W)(?=\d|T\d)(\d+Y)?(\d+M)?(\d+D)?(T(?=\d)(\d+H)?(\d+M)?(\d+([.,]\d+)?S)?)?)$": (
        FORMATS["duration"]
    ),
    r"^(?!\.)(?!.*\.\.)([A-Za-z0-9_'+\-\.]*)[A-Za-z0-9_+-]@([A-Za-z0-9][A-Za-z0-9\-]*\.)+[A-Za-z]{2,}$": (
        FORMATS["email"]
    ),
}


def rewritten_patterns(pattern: Any, *, is_of_names: bool = False) -> list[str]:
    """Return patterns; a text matches `pattern` if each of them matches somewhere in it.

    Raises SchemaError for what a regular language does not have (lookarounds other than a leading `(?=...)`, back
    references), and for syntax that engines read in different ways.
    """
    if not isinstance(pattern, str):
        raise SchemaError(f"`pattern` is {shown(pattern)}; it must be a string")
    if pattern in _KNOWN:
        return [_KNOWN[pattern]]
    reader = _Reader(pattern, *((_ECMASCRIPT, _ECMASCRIPT) if is_of_names else (_NARROW, _WIDE)))
    ahead = reader.leading_lookaheads()
    whole = reader.alternation(0)
    if reader.position < len(pattern):
        raise reader.error("an unopened `)`")
    if ahead and reader.has_alternatives:
        raise reader.error("a lookahead before `|`")
    return [*ahead, f"^{whole}" if ahead else whole]


def literal_pattern(text: str) -> str:
    """Return the pattern of one text."""
    return "".join(_literal(ord(character)) for character in text)


class _Reader(PatternCursor):
    """Reads one pattern from left to right."""

    def __init__(self, pattern: str, narrow: Mapping[str, str], wide: Mapping[str, str]) -> None:
        super().__init__(pattern)
        self.has_alternatives = False  # outside of groups
        self._narrow, self._wide = narrow, wide

    def error(self, what: str) -> SchemaError:
        return SchemaError(f"its pattern has {what} at character {self.position}, which is not supported")

    def leading_lookaheads(self) -> list[str]:
        """Read `^(?=...)(?=...)` at the beginning; nothing is read if there is no lookahead."""
        if not self._pattern.startswith("^(?="):
            return []
        self.position = 1
        patterns = []
        while self._takes("(?="):
            patterns.append(f"^(?:{self.alternation(1)})")
            if not self._takes(")"):
                raise self.error("an unclosed `(`")
        return patterns

    def alternation(self, depth: int) -> str:
        """Read alternatives until a closing parenthesis or the end."""
        if depth > _MAX_DEPTH:
            raise SchemaError(f"its pattern has groups nested more than {_MAX_DEPTH} levels deep")
        parts: list[str] = []
        while self._next() not in ("", ")"):
            if self._takes("|"):
                self.has_alternatives |= depth == 0
                parts.append("|")
            else:
                parts.append(self._term(depth))
        return "".join(parts)

    def _term(self, depth: int) -> str:
        for anchor in "^$":
            if self._takes(anchor):
                if _QUANTIFIER.match(self._pattern, self.position):
                    raise self.error(f"a repeated `{anchor}`")
                return anchor
        return self._atom(depth) + self._quantifier()

    def _quantifier(self) -> str:
        found = self._take_match(_QUANTIFIER)
        if found is None:
            if self._pattern.startswith("{,", self.position):
                raise self.error("`{,`")
            return ""
        least, most = found[1], found[2]
        if least is not None and most and int(most) < int(least):
            raise self.error("a repetition whose bounds are reversed")
        self._takes("?")  # a lazy repetition matches the same texts
        if self._take_match(_QUANTIFIER):
            raise self.error("a repetition of a repetition")
        return found[0]

    def _atom(self, depth: int) -> str:
        if self._takes("("):
            return self._group(depth)
        if self._takes("["):
            return self._class()
        if self._takes("."):
            return _DOT
        if self._next() == "\\":
            sets = self._set_escape(is_negated=False)
            return f"[{sets}]" if sets else _literal(self._escape())
        if _QUANTIFIER.match(self._pattern, self.position):
            raise self.error("a repetition of nothing")
        self.position += 1
        return _literal(ord(self._pattern[self.position - 1]))

    def _group(self, depth: int) -> str:
        if not self._takes("?:") and not self._take_match(_NAMED_GROUP) and self._next() == "?":
            self.position -= 1
            raise self.error("a lookaround or a flag")
        inner = self.alternation(depth + 1)
        if not self._takes(")"):
            raise self.error("an unclosed `(`")
        return f"(?:{inner})"

    def _class(self) -> str:
        is_negated = self._takes("^")
        if self._next() == "]":
            raise self.error("an empty set")
        items: list[str] = []
        while not self._takes("]"):
            if not self._next():
                raise self.error("an unclosed `[`")
            sets = self._set_escape(is_negated)
            if sets:
                items.append(sets)
                continue
            first = self._class_character()
            if self._next() == "-" and self._pattern[self.position + 1 : self.position + 2] not in ("]", ""):
                self.position += 1
                if self._set_escape(is_negated):
                    raise self.error("a range that ends with a set")
                last = self._class_character()
                if last < first:
                    raise self.error("a range whose ends are reversed")
                items.append(f"{_literal(first)}-{_literal(last)}")
            else:
                items.append(_literal(first))
        return f"[{'^' if is_negated else ''}{''.join(items)}]"

    def _class_character(self) -> int:
        if self._takes("\\b"):
            return 8
        if self._next() == "\\":
            return self._escape()
        self.position += 1
        return ord(self._pattern[self.position - 1])

    def _set_escape(self, is_negated: bool) -> str:
        """Read an escape that stands for many characters, if one is next; return items of a set."""
        letter = self._pattern[self.position + 1 : self.position + 2] if self._next() == "\\" else ""
        if letter in ("p", "P"):
            self.position += 2
            name = self._take_match(_PROPERTY)
            if name is None:
                raise self.error(f"`\\{letter}` without a name in braces")
            return f"\\{letter}{name[0]}"
        if not letter or letter not in "dwsDWS":
            return ""
        self.position += 2
        if letter.islower():
            return (self._wide if is_negated else self._narrow)[letter]
        return f"[^{(self._narrow if is_negated else self._wide)[letter.lower()]}]"

    def _escape(self) -> int:
        """Read an escape of one character and return its code point."""
        self.position += 1
        letter = self._next()
        self.position += 1
        if letter in _CONTROL:
            return _CONTROL[letter]
        if letter == "0" and not self._next().isdigit():
            return 0
        if letter == "c" and re.match("[A-Za-z]", self._next()):
            self.position += 1
            return ord(self._pattern[self.position - 1]) % 32
        if letter == "x":
            return self._hexadecimal(re.compile("()([0-9A-Fa-f]{2})"))
        if letter == "u":
            code = self._hexadecimal(re.compile(r"(?:(\{)([0-9A-Fa-f]{1,6})\}|([0-9A-Fa-f]{4}))"))
            if 0xD800 <= code < 0xDC00 and self._takes("\\u"):
                low = self._hexadecimal(re.compile("()([dD][c-fC-F][0-9A-Fa-f]{2})"))
                code = 0x10000 + (code - 0xD800) * 0x400 + low - 0xDC00
            if 0xD800 <= code < 0xE000 or code > 0x10FFFF:
                raise self.error("an escape that is not a character")
            return code
        if not letter or letter.isalnum():
            raise self.error(f"`\\{letter}`" if letter.isascii() else "an escaped letter")
        return ord(letter)

    def _hexadecimal(self, kind: re.Pattern[str]) -> int:
        found = self._take_match(kind)
        if found is None:
            raise self.error("an unfinished escape")
        return int(found[2] or found[found.lastindex or 0], 16)


def _literal(code: int) -> str:
    character = chr(code)
    return character if character.isascii() and character.isalnum() else f"\\x{{{code:X}}}"
