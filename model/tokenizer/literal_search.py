"""LiteralSearch: find a fixed set of strings in a text."""

import re
from collections.abc import Collection, Iterator
from typing import Any

_WINDOW_CHARACTERS = 2**14  # searched at once with the GIL held


class LiteralSearch:
    """Finds literals in a text, the longest one at each place.

    The pattern has each common prefix of literals once, so a search takes time in proportion to the text, whatever the
    number of literals. (With an alternative for each literal, 256 special tokens that begin with `<|` and a text of
    nothing but `<|` would take seconds.) The text is searched in windows; other threads can get the GIL in between.
    """

    def __init__(self, literals: Collection[str]) -> None:
        self.literals = tuple(literal for literal in literals if literal)
        self._pattern = re.compile(_pattern(self.literals))
        self._max_length = max(map(len, self.literals), default=0)
        self._beginnings = frozenset(literal[:end] for literal in self.literals for end in range(1, len(literal) + 1))

    def matches(self, text: str, start: int = 0) -> Iterator[re.Match[str]]:
        """Yield the matches from `start` on, from left to right, without overlaps."""
        return self._matches(text, start, are_apart=True)

    def starts(self, text: str) -> Iterator[int]:
        """Yield every position where a literal begins, also inside another one."""
        return (match.start() for match in self._matches(text, 0, are_apart=False))

    def partial_start(self, text: str) -> int | None:
        """Return the first position from which the rest of the text is the beginning of a literal, or None."""
        for start in range(max(0, len(text) - self._max_length), len(text)):
            if text[start:] in self._beginnings:
                return start
        return None

    def _matches(self, text: str, start: int, *, are_apart: bool) -> Iterator[re.Match[str]]:
        for window in range(start, len(text) if self.literals else 0, _WINDOW_CHARACTERS):
            window_end = window + _WINDOW_CHARACTERS
            while start < window_end:
                # A match that begins in the window may end after it.
                match = self._pattern.search(text, start, window_end + self._max_length - 1)
                if match is None or match.start() >= window_end:
                    start = window_end
                    break
                yield match
                start = match.end() if are_apart else match.start() + 1


def _pattern(literals: Collection[str]) -> str:
    """Return a pattern that finds the longest of these literals."""
    root: dict[str, Any] = {}
    for literal in literals:
        node = root
        for character in literal:
            node = node.setdefault(character, {})
        node[""] = {}  # a literal ends here
    try:
        return _written(root)
    except RecursionError:  # a literal of hundreds of characters
        return "|".join(map(re.escape, sorted(literals, key=len, reverse=True)))


def _written(node: dict[str, Any]) -> str:
    branches = [re.escape(character) + _written(child) for character, child in node.items() if character]
    if not branches:
        return ""
    pattern = branches[0] if len(branches) == 1 else f"(?:{'|'.join(branches)})"
    return f"(?:{pattern})?" if "" in node else pattern
