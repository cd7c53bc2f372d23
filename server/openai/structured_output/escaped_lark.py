r"""Lark grammars of texts inside a JSON string: the rules of a custom tool's grammar, with the escapes of JSON.

A grammar whose rules do not refer to themselves describes a regular language. It becomes one terminal, whatever its own
division into terminals is, since the library reads a terminal to its longest match and never goes back: after
`/.+/` the `\` of a `\n` would begin an escape of the same terminal. A recursive grammar keeps its terminals, so it can
be enforced only where none of them goes on with an escaped character.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from caravan.server.openai.structured_output.escaped_pattern import (
    SPECIAL,
    NotEnforceable,
    escaped_literal,
    escaped_pattern,
    escaped_text,
)

_TOKEN = re.compile(
    r"""(?P<space>[ \t\r\n\f]+|//[^\n]*|\#[^\n]*)
    |(?P<text>"(?:\\.|[^"\\\n])*"i?)
    |(?P<regex>/(?:\\.|[^/\\\n])+/[a-z]*)
    |(?P<name>_*[A-Za-z]\w*)
    |(?P<number>-?\d+)
    |(?P<directive>%[a-z]+)
    |(?P<sign>->|\.\.|[:|()\[\]*+?!~{},.&])""",
    re.VERBOSE,
)
_MAX_TOKENS = 20_000

# Of Lark's module `common`.
_INT = r"[0-9]+"
_DECIMAL = r"(?:[0-9]+\.[0-9]*|\.[0-9]+)"
_FLOAT = rf"(?:[0-9]+[eE][+-]?[0-9]+|{_DECIMAL}(?:[eE][+-]?[0-9]+)?)"
_NUMBER = rf"(?:{_FLOAT}|{_INT})"
_COMMON: Mapping[str, str] = {
    "DIGIT": r"[0-9]",
    "HEXDIGIT": r"[a-fA-F0-9]",
    "INT": _INT,
    "SIGNED_INT": rf"[+-]?{_INT}",
    "DECIMAL": _DECIMAL,
    "FLOAT": _FLOAT,
    "SIGNED_FLOAT": rf"[+-]?{_FLOAT}",
    "NUMBER": _NUMBER,
    "SIGNED_NUMBER": rf"[+-]?{_NUMBER}",
    "ESCAPED_STRING": r'"(?:[^"\\\n]|\\[^\n])*"',
    "LCASE_LETTER": r"[a-z]",
    "UCASE_LETTER": r"[A-Z]",
    "LETTER": r"[A-Za-z]",
    "WORD": r"[A-Za-z]+",
    "CNAME": r"[A-Za-z_][A-Za-z0-9_]*",
    "WS_INLINE": r"[ \t]+",
    "WS": r"[ \t\f\r\n]+",
    "CR": r"\r",
    "LF": r"\n",
    "NEWLINE": r"(?:\r?\n)+",
}


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str


@dataclass
class _Grammar:
    """The definitions of a grammar, by name, and what may stand between its terminals."""

    bodies: dict[str, list[_Token]] = field(default_factory=dict)
    ignored: list[list[_Token]] = field(default_factory=list)


def escaped_rules(name: str, definition: str) -> list[str]:
    """Return rules of Lark, of which the first has this name, for the escaped forms of the texts of a grammar.

    The names of the others begin with it. Raises NotEnforceable.
    """
    grammar = _parsed(definition)
    if "start" not in grammar.bodies:
        raise NotEnforceable("it has no rule `start`")
    return _Writer(name, grammar).rules()


def _tokens(definition: str) -> list[_Token]:
    tokens: list[_Token] = []
    position = 0
    while position < len(definition):
        found = _TOKEN.match(definition, position)
        if found is None:
            raise NotEnforceable(f"it has {json.dumps(definition[position : position + 10])}")
        position = found.end()
        if found[0] in ("?", "!") and not definition[: found.start()].rpartition("\n")[2].strip(" \t?!"):
            continue  # before the name of a rule; it shapes the tree of a text, which nobody builds here
        if found.lastgroup != "space":
            tokens.append(_Token(str(found.lastgroup), found[0]))
    if len(tokens) > _MAX_TOKENS:
        raise NotEnforceable(f"it has more than {_MAX_TOKENS} words and signs")
    return tokens


def _parsed(definition: str) -> _Grammar:
    grammar, tokens = _Grammar(), _tokens(definition)
    starts = [index for index in range(len(tokens)) if tokens[index].kind == "directive" or _is_head(tokens, index)]
    if not tokens:
        raise NotEnforceable("it is empty")
    if not starts or starts[0]:
        raise NotEnforceable(f"it begins with `{tokens[0].text[:32]}`")
    for start, end in zip(starts, [*starts[1:], len(tokens)], strict=True):
        head, body = tokens[start], tokens[start + 1 : end]
        if head.text == "%import":
            for name, common in _imported(body).items():
                grammar.bodies[name] = [_Token("regex", f"/{_COMMON[common]}/")]
        elif head.text == "%ignore":
            grammar.ignored.append(body)
        elif head.kind == "directive":
            raise NotEnforceable(f"it has `{head.text}`")
        else:
            colon = next(index for index, token in enumerate(body) if token.text == ":")
            if any(token.text == ":" for token in body[colon + 1 :]):
                raise NotEnforceable("it has a rule with attributes or parameters")
            grammar.bodies[head.text] = body[colon + 1 :]
    return grammar


def _is_head(tokens: list[_Token], index: int) -> bool:
    """Return whether a definition begins here: a name, perhaps with a priority, and a colon."""
    if tokens[index].kind != "name":
        return False
    after = [token.text for token in tokens[index + 1 : index + 4]]
    return after[:1] == [":"] or (after[:1] == ["."] and after[2:] == [":"])


def _imported(body: list[_Token]) -> dict[str, str]:
    """Return the terminals of an import, each with its name in the module `common`."""
    texts = [token.text for token in body]
    if texts[:1] == ["common"] and texts[1:2] == ["("] and texts[-1:] == [")"]:
        names = {name: name for name in texts[2:-1] if name != ","}
    elif texts[:2] == ["common", "."] and len(texts) in (3, 5) and texts[3:4] in ([], ["->"]):
        names = {texts[-1]: texts[2]}
    else:
        raise NotEnforceable("it imports something else than `common`")
    for common in names.values():
        if common not in _COMMON:
            raise NotEnforceable(f"it imports `{common[:32]}`")
    return names


class _Writer:
    """Writes the definitions that a grammar's start leads to."""

    def __init__(self, name: str, grammar: _Grammar) -> None:
        self._name = name
        self._grammar = grammar
        self._reached = self._names_from(["start"])
        self._is_recursive = self._has_cycle()
        self._ignored = f"{name.upper()}_IGNORED" if grammar.ignored else ""
        kinds = {one: not self._is_recursive or one.lstrip("_")[0].isupper() for one in self._reached}
        self._new_names = {
            one: f"{name.upper() if is_terminal else name}_{index}"
            for index, (one, is_terminal) in enumerate(kinds.items())
        }

    def rules(self) -> list[str]:
        """Return the rules, the one of the given name first."""
        before = f"{self._ignored}* " if self._ignored else ""
        whole = f"{before}{self._new_names['start']}"
        rules = [f"{self._name}: {whole}"]
        if not self._is_recursive:
            rules = [f"{self._name}: {self._name.upper()}", f"{self._name.upper()}: {whole}"]
        for name in self._reached:
            is_rule = not name.lstrip("_")[0].isupper()
            rules.append(f"{self._new_names[name]}: {self._written(self._grammar.bodies[name], is_rule=is_rule)}")
        if self._ignored:
            alternatives = [f"({self._written(body, is_rule=False)})" for body in self._grammar.ignored]
            rules.append(f"{self._ignored}: {' | '.join(alternatives)}")
        return rules

    def _names_from(self, names: list[str]) -> list[str]:
        """Return these names and those that they lead to."""
        reached = dict.fromkeys(names)
        waiting = [*names, *(name for body in self._grammar.ignored for name in self._references(body))]
        while waiting:
            name = waiting.pop()
            reached[name] = None
            if name not in self._grammar.bodies:
                raise NotEnforceable(f"it does not define `{name[:32]}`")
            waiting += [one for one in self._references(self._grammar.bodies[name]) if one not in reached]
        return [*reached]

    def _references(self, body: list[_Token]) -> list[str]:
        """Return the names in a body; the name after `->` is none of a definition."""
        pairs = zip([_Token("", ""), *body], body, strict=False)
        return [token.text for before, token in pairs if token.kind == "name" and before.text != "->"]

    def _has_cycle(self) -> bool:
        """Return whether a definition leads to itself."""
        num_left = dict.fromkeys(self._reached, 0)  # references to it that are not read yet
        for name in self._reached:
            for one in self._references(self._grammar.bodies[name]):
                num_left[one] += 1
        free = [name for name, count in num_left.items() if not count]
        num_read = 0
        while free:
            num_read += 1
            for one in self._references(self._grammar.bodies[free.pop()]):
                num_left[one] -= 1
                if not num_left[one]:
                    free.append(one)
        return num_read < len(self._reached)

    def _written(self, body: list[_Token], *, is_rule: bool) -> str:
        """Return the expression of a definition; in a rule, ignored text may follow each terminal."""
        written: list[str] = []
        brackets: list[str] = []
        index = 0
        while index < len(body):
            token, after = body[index], body[index + 1].text if index + 1 < len(body) else ""
            index += 1
            terminal = ""
            if token.kind == "text" and after == "..":
                terminal = self._range(token, body[index + 1 : index + 2])
                index += 2
            elif token.kind == "text":
                terminal = self._text(token, is_alone=is_rule or len(body) == 1)
            elif token.kind == "regex":
                terminal = self._regex(token)
            elif token.kind == "name" and token.text.lstrip("_")[0].isupper():
                terminal = self._new_names[token.text]
            elif token.kind == "name":
                written.append(self._new_names[token.text])
            elif token.text == "->":
                index += 1
            elif token.text in ("[", "("):
                brackets.append(")?" if token.text == "[" else ")")
                written.append("(")
            elif token.text in ("]", ")"):
                if not brackets:
                    raise NotEnforceable(f"it has an unopened `{token.text}`")
                written.append(brackets.pop())
            elif token.text in ("{", "~"):
                bounds, length = _bounds(token.text, [one.text for one in body[index : index + 4]])
                written.append(bounds)
                index += length
            elif token.text in ("|", "*", "+", "?", "&"):
                written.append(token.text)
            else:
                raise NotEnforceable(f"it has `{token.text[:32]}` in a definition")
            if terminal:
                written.append(f"({terminal} {self._ignored}*)" if self._ignored and is_rule else terminal)
        if brackets:
            raise NotEnforceable("it has an unclosed bracket")
        return " ".join(written) or '""'

    def _text(self, token: _Token, *, is_alone: bool) -> str:
        ignores_case = token.text.endswith("i")
        value = _value(token)
        self._check(any(ord(one) in SPECIAL for one in (value[1:] if is_alone else value)))
        if ignores_case:
            return f"/{escaped_literal(value, ignores_case=True)}/" if value else '""'
        return json.dumps(escaped_text(value))

    def _regex(self, token: _Token) -> str:
        pattern, _, flags = token.text[1:].rpartition("/")
        written, has_special = escaped_pattern(pattern.replace(r"\/", "/"), flags=flags)
        self._check(has_special)
        return f"/{written}/"

    def _range(self, token: _Token, last: list[_Token]) -> str:
        ends = [_value(one) for one in (token, *last) if one.kind == "text"]
        if [len(end) for end in ends] != [1, 1] or ends[1] < ends[0]:
            raise NotEnforceable(f"it has a range from {token.text[:32]}")
        items = "-".join(f"\\x{{{ord(end):X}}}" for end in ends)
        written, has_special = escaped_pattern(f"[{items}]")
        self._check(has_special)
        return f"/{written}/"

    def _check(self, has_special: bool) -> None:
        """Raise NotEnforceable for escaped characters in a terminal of a recursive grammar."""
        if has_special and self._is_recursive:
            raise NotEnforceable(
                "its rules refer to themselves, and its terminals have line breaks, quotation marks, backslashes or "
                "sets with them (`.`, `[^...]`)"
            )


def _value(token: _Token) -> str:
    try:
        value = json.loads(token.text.removesuffix("i"))
    except ValueError:
        raise NotEnforceable(f"it has the string {token.text[:32]}, with an escape that JSON does not have") from None
    assert isinstance(value, str)
    if any(0xD800 <= ord(one) < 0xE000 for one in value):
        raise NotEnforceable("it has half of a surrogate pair")
    return value


def _bounds(sign: str, texts: list[str]) -> tuple[str, int]:
    """Return a repetition, and the number of tokens after its sign, from `{n}`, `{n,m}`, `~n` or `~n..m`."""
    comma = ".." if sign == "~" else ","
    numbers = [text for text in texts[:3:2] if text.isdigit()]
    if sign == "~" and numbers and texts[1:2] != [comma]:
        return f"{{{numbers[0]}}}", 1
    if sign == "~" and len(numbers) == 2:
        return f"{{{numbers[0]},{numbers[1]}}}", 3
    if sign == "{" and numbers and texts[1:2] == ["}"]:
        return f"{{{numbers[0]}}}", 2
    if sign == "{" and len(numbers) == 2 and texts[3:4] == ["}"]:
        return f"{{{numbers[0]},{numbers[1]}}}", 4
    if sign == "{" and len(numbers) == 1 and texts[1:3] == [",", "}"]:
        return f"{{{numbers[0]},}}", 3
    raise NotEnforceable("it has `~` before a terminal" if sign == "~" else "it has `{` without a number")
