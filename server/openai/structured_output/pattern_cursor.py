"""PatternCursor: a place in a regular expression that is read from left to right."""

import re


class PatternCursor:
    """The base of the readers of patterns, which rewrite one dialect in another."""

    def __init__(self, pattern: str) -> None:
        self.position = 0
        self._pattern = pattern

    def _next(self) -> str:
        """Return the next character, empty at the end."""
        return self._pattern[self.position : self.position + 1]

    def _takes(self, text: str) -> bool:
        """Move past a text if it is next; return whether it was."""
        found = self._pattern.startswith(text, self.position)
        self.position += len(text) * found
        return found

    def _take_match(self, kind: re.Pattern[str]) -> re.Match[str] | None:
        """Move past a match if it is next, and return it."""
        found = kind.match(self._pattern, self.position)
        if found:
            self.position = found.end()
        return found
