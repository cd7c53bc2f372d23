r"""Patterns of texts inside a JSON string: what a regular expression allows, with the escapes of JSON.

A model writes the input of a custom tool as a JSON string, while a client prescribes the text that it stands for. So a
pattern is read here, in the syntax of Rust's regex crate, and written again: a line break in it becomes `\n`, a
quotation mark `\"`. A text has one escaped form; characters that JSON need not escape stay as they are.
"""

import re
from collections.abc import Mapping

from caravan.server.openai.structured_output.pattern_cursor import PatternCursor

_ESCAPES: Mapping[int, str] = {8: "b", 9: "t", 10: "n", 12: "f", 13: "r", 0x22: '"', 0x5C: "\\"}
_CONTROLS = frozenset(range(0x20))
SPECIAL = _CONTROLS | {0x22, 0x5C}  # the characters that a JSON string has escaped only
_PLAIN = r"[^\x{22}\x{5C}\x{0}-\x{1F}]"
_SPACES = frozenset(range(9, 14))
_MARKS = frozenset({0x22, 0x5C})
_NONE: frozenset[int] = frozenset()
_MAX_DEPTH = 50  # of groups and sets

_LETTERS: Mapping[str, int] = {"n": 10, "r": 13, "t": 9, "f": 12, "v": 11, "a": 7}
_SETS = {"d": _NONE, "w": _NONE, "s": _SPACES}
_CODE = re.compile(r"x([0-9A-Fa-f]{2})|u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8})|[xuU]\{([0-9A-Fa-f]{1,8})\}")
_PROPERTY = re.compile(r"[pP](?:\{([A-Za-z_]+)\}|([A-Z]))")
_POSIX = re.compile(r"\[:(\^?)([a-z]+):\]")
_QUANTIFIER = re.compile(r"[*+?]|\{\d{1,6}(?:,\d{0,6})?\}")
_GROUP = re.compile(r"\?(?:P?<[A-Za-z_]\w*>|([a-zA-Z]*)(?:-([a-zA-Z]+))?([:)]))")
_CATEGORY = re.compile(r"[LMNSZ][a-z]?")
_PROPERTIES = {"Any": SPECIAL, "ASCII": SPECIAL, "C": _CONTROLS, "Cc": _CONTROLS, "P": _MARKS, "Po": _MARKS}
_POSIX_SETS = dict.fromkeys(("alnum", "alpha", "digit", "lower", "upper", "word", "xdigit"), _NONE) | {
    "ascii": SPECIAL,
    "blank": frozenset({9}),
    "cntrl": _CONTROLS,
    "graph": _MARKS,
    "print": _MARKS,
    "punct": _MARKS,
    "space": _SPACES,
}


class NotEnforceable(ValueError):
    """A grammar or a pattern that cannot be enforced inside a JSON string; the message says why."""


def escaped_text(text: str) -> str:
    """Return a text as it stands in a JSON string."""
    return "".join(f"\\{_escape(ord(one))}" if ord(one) in SPECIAL else one for one in text)


def escaped_literal(text: str, *, ignores_case: bool = False) -> str:
    """Return the pattern of the escaped form of one text."""
    return "".join(_character(ord(one), ignores_case) for one in text)


def escaped_pattern(pattern: str, *, flags: str = "", has_anchors: bool = False) -> tuple[str, bool]:
    """Return the pattern of the escaped forms of the texts that `pattern` matches as a whole.

    Also return whether such a text may have a character that is escaped. `has_anchors` allows `^` and `$` at the ends
    of the pattern, where they exclude nothing. Raises NotEnforceable for what is not regular, or not known here.
    """
    reader = _Reader(pattern, flags, has_anchors)
    result = reader.alternation(0)
    if reader.position < len(pattern):
        raise reader.error("an unopened `)`")
    return result, reader.has_special


def _escape(code: int) -> str:
    return _ESCAPES.get(code) or f"u{code:04x}"


def _literal(code: int) -> str:
    character = chr(code)
    return character if character.isascii() and character.isalnum() else f"\\x{{{code:X}}}"


def _character(code: int, ignores_case: bool) -> str:
    if code in SPECIAL:
        return rf"\x{{5C}}{''.join(_literal(ord(one)) for one in _escape(code))}"
    return f"(?i:{_literal(code)})" if ignores_case else _literal(code)


def _any_of(items: str, special: frozenset[int], ignores_case: bool) -> str:
    """Return the pattern of one character of a set, whose escaped characters are `special`."""
    plain = f"[{items}&&{_PLAIN}]"
    branches = [f"(?i:{plain})" if ignores_case else plain]
    letters = "".join(_literal(ord(_ESCAPES[code])) for code in sorted(special & _ESCAPES.keys()))
    if letters:
        branches.append(rf"\x{{5C}}[{letters}]")
    for first in "01":
        digits = "".join(f"{code % 16:x}" for code in sorted(special - _ESCAPES.keys()) if code // 16 == int(first))
        if digits:
            branches.append(rf"\x{{5C}}u00{first}[{digits}]")
    return f"(?:{'|'.join(branches)})"


class _Reader(PatternCursor):
    """Reads one pattern from left to right."""

    def __init__(self, pattern: str, flags: str, has_anchors: bool) -> None:
        super().__init__(pattern)
        self.has_special = False
        self._has_anchors = has_anchors
        self._flags: frozenset[str] = frozenset()
        self._set_flags(flags, "")

    def error(self, what: str) -> NotEnforceable:
        return NotEnforceable(f"a pattern has {what} at character {self.position}")

    def alternation(self, depth: int) -> str:
        """Read alternatives until a closing parenthesis or the end; flags that are set inside end with them."""
        if depth > _MAX_DEPTH:
            raise self.error(f"groups nested more than {_MAX_DEPTH} levels deep,")
        flags, parts, is_start = self._flags, list[str](), True
        while self._next() not in ("", ")"):
            if self._takes("|"):
                parts.append("|")
                is_start = True
                continue
            if not (is_start and self._takes_anchor("^", r"\A", depth)):
                is_end = self._takes_anchor("$", r"\z", depth)
                if is_end and self._next() not in ("", "|"):
                    raise self.error("an anchor in the middle,")
                if not is_end:
                    parts.append(self._repeated(depth))
            is_start = False
        self._flags = flags
        return "".join(parts)

    def _takes_anchor(self, sign: str, escape: str, depth: int) -> bool:
        return self._has_anchors and not depth and "m" not in self._flags and (self._takes(sign) or self._takes(escape))

    def _repeated(self, depth: int) -> str:
        atom = self._atom(depth)
        while found := self._take_match(_QUANTIFIER):
            atom = f"(?:{atom}){found[0]}"
            self._takes("?")  # a lazy repetition matches the same texts
        return atom

    def _atom(self, depth: int) -> str:
        if self._takes("("):
            return self._group(depth)
        if self._next() == "[":
            items, special = self._class(depth)
            return self._set(items, special)
        if self._takes("."):
            is_all = "s" in self._flags
            return self._set(r"\x{0}-\x{10FFFF}" if is_all else r"[^\x{A}]", SPECIAL if is_all else SPECIAL - {10})
        if self._next() == "\\":
            found = self._set_escape()
            return self._set(*found) if found else self._one(self._code())
        if self._next() in "^$*+?{":
            raise self.error(f"`{self._next()}`")
        self.position += 1
        return self._one(ord(self._pattern[self.position - 1]))

    def _one(self, code: int) -> str:
        self.has_special |= code in SPECIAL
        return _character(code, "i" in self._flags)

    def _set(self, items: str, special: frozenset[int]) -> str:
        self.has_special |= bool(special)
        return _any_of(items, special, "i" in self._flags)

    def _group(self, depth: int) -> str:
        flags = self._flags
        if self._next() == "?":
            found = self._take_match(_GROUP)
            if found is None:
                raise self.error("a lookaround or a group of another kind")
            self._set_flags(found[1] or "", found[2] or "")
            if found[3] == ")":
                return ""  # they hold until the end of the group around
        inner = self.alternation(depth + 1)
        if not self._takes(")"):
            raise self.error("an unclosed `(`")
        self._flags = flags
        return f"(?:{inner})"

    def _set_flags(self, added: str, removed: str) -> None:
        if unknown := set(added + removed) - set("imsu") or ("u" in removed and {"u"}):
            raise self.error(f"the flag `{sorted(unknown)[0]}`")
        self._flags = (self._flags | set(added)) - set(removed)

    def _class(self, depth: int) -> tuple[str, frozenset[int]]:
        """Read a set in brackets; return it, and those of its characters that are escaped."""
        if depth > _MAX_DEPTH:
            raise self.error(f"sets nested more than {_MAX_DEPTH} levels deep,")
        self.position += 1
        is_negated = self._takes("^")
        written: list[str] = []
        before: frozenset[int] | None = None  # the set before an operator
        special, operator, is_first = _NONE, "", True
        while is_first or not self._takes("]"):
            if not self._next():
                raise self.error("an unclosed `[`")
            found = next((sign for sign in ("&&", "--", "~~") if self._takes(sign)), "")
            if found:
                before, special, operator = _combined(before, operator, special), _NONE, found
                written.append(found)
            else:
                items, more = self._item(depth)
                written.append(items)
                special |= more
            is_first = False
        special = _combined(before, operator, special)
        return f"[{'^' if is_negated else ''}{''.join(written)}]", SPECIAL - special if is_negated else special

    def _item(self, depth: int) -> tuple[str, frozenset[int]]:
        posix = self._take_match(_POSIX)
        if posix:
            if posix[2] not in _POSIX_SETS:
                raise self.error(f"the class `{posix[0]}`")
            return posix[0], SPECIAL - _POSIX_SETS[posix[2]] if posix[1] else _POSIX_SETS[posix[2]]
        if self._next() == "[":
            return self._class(depth + 1)
        found = self._set_escape()
        if found:
            return found
        first = last = self._class_code()
        if self._next() == "-" and self._pattern[self.position + 1 : self.position + 2] not in ("]", "-", ""):
            self.position += 1
            last = self._class_code()
            if last < first:
                raise self.error("a range whose ends are reversed")
        return f"{_literal(first)}-{_literal(last)}", SPECIAL & frozenset(range(first, min(last, 0x5C) + 1))

    def _class_code(self) -> int:
        if self._next() == "\\":
            return self._code()
        self.position += 1
        return ord(self._pattern[self.position - 1])

    def _set_escape(self) -> tuple[str, frozenset[int]] | None:
        """Read an escape that stands for many characters, if one is next."""
        if self._next() != "\\":
            return None
        letter = self._pattern[self.position + 1 : self.position + 2]
        if letter and letter in "dwsDWS":
            self.position += 2
            return f"\\{letter}", SPECIAL - _SETS[letter.lower()] if letter.isupper() else _SETS[letter]
        found = _PROPERTY.match(self._pattern, self.position + 1)
        if found is None:
            return None
        self.position = found.end()
        name = found[1] or found[2]
        special = _NONE if _CATEGORY.fullmatch(name) else _PROPERTIES.get(name)
        if special is None:
            raise self.error(f"the property `{name[:32]}`")
        return f"\\{found[0]}", SPECIAL - special if letter == "P" else special

    def _code(self) -> int:
        """Read an escape of one character and return its code point."""
        self.position += 1
        found = self._take_match(_CODE)
        if found:
            code = int(next(group for group in found.groups() if group), 16)
            if 0xD800 <= code < 0xE000 or code > 0x10FFFF:
                raise self.error("an escape that is not a character")
            return code
        letter = self._next()
        self.position += 1
        if letter in _LETTERS:
            return _LETTERS[letter]
        if not letter or not letter.isascii() or letter.isalnum() or letter in "<>":
            raise self.error(f"`\\{letter}`" if letter.isascii() else "an escaped letter")
        return ord(letter)


def _combined(before: frozenset[int] | None, operator: str, after: frozenset[int]) -> frozenset[int]:
    if before is None:
        return after
    if operator == "&&":
        return before & after
    return before - after if operator == "--" else before ^ after
