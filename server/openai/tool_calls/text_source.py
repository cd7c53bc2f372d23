"""TextSource: text that arrives in chunks, read one character at a time, with backtracking."""

import re
from collections.abc import Callable, Generator
from typing import TypeVar

T = TypeVar("T")
Steps = Generator[None, None, T]  # a reader that yields when it needs more text

_SPACE = re.compile(r"[ \t\r\n]+")  # of JSON


class CutOff(Exception):
    """The text ended in the middle of a value."""


class TextSource:
    """The unread text, and the text that `rewind` may return to.

    Each character is read once, except after `rewind`.
    """

    def __init__(self) -> None:
        self._text = ""  # the latest chunk
        self._position = 0
        self._is_ended = False
        self._kept: list[str] | None = None  # earlier chunks since `keep`
        self._kept_from = 0  # where the kept text begins in the latest chunk
        self._sink: Callable[[str], None] | None = None
        self._sunk_to = 0  # up to where the latest chunk was passed to the sink

    def feed(self, text: str) -> None:
        """Add the next chunk; the text before it must have been read."""
        if self._kept is not None:
            self._kept.append(self._text[self._kept_from :])
        self._text, self._position, self._kept_from, self._sunk_to = text, 0, 0, 0

    def end(self) -> None:
        """Mark the end of the text."""
        self._is_ended = True

    def peek(self) -> Steps[str]:
        """Return the next character, or an empty string at the end of the text."""
        while self._position >= len(self._text):
            if self._is_ended:
                return ""
            yield
        return self._text[self._position]

    def need(self) -> Steps[str]:
        """Return the next character; raises CutOff at the end of the text."""
        character = yield from self.peek()
        if not character:
            raise CutOff
        return character

    def advance(self) -> None:
        """Pass the character that `peek` has returned."""
        self._position += 1

    def take(self, pattern: re.Pattern[str]) -> str:
        """Pass and return the match of the pattern in the text received so far."""
        match = pattern.match(self._text, self._position)
        if match is None:
            return ""
        self._position = match.end()
        return match.group()

    def take_all(self, pattern: re.Pattern[str]) -> Steps[str]:
        """Pass and return the characters that match, up to one that does not; raises CutOff at the end of the text."""
        taken = ""
        while True:
            yield from self.need()
            part = self.take(pattern)
            if not part:
                return taken
            taken += part

    def skip_space(self) -> Steps[str]:
        """Pass white space and return the character after it; raises CutOff at the end of the text."""
        yield from self.take_all(_SPACE)
        return self._text[self._position]

    def match(self, expected: str) -> Steps[int]:
        """Pass the common prefix of the text and `expected`; return its length."""
        for index, character in enumerate(expected):
            if (yield from self.peek()) != character:
                return index
            self._position += 1
        return len(expected)

    def keep(self) -> None:
        """Keep the text from here on, so that `rewind` can return to it."""
        self._kept, self._kept_from = [], self._position

    @property
    def kept(self) -> str:
        """The text that was read since `keep`."""
        assert self._kept is not None
        return "".join(self._kept) + self._text[self._kept_from : self._position]

    def rewind(self, count: int = 0) -> None:
        """Go back to `count` characters after `keep`, and stop keeping."""
        assert self._kept is not None
        if self._kept:
            self._text = "".join(self._kept) + self._text[self._kept_from :]
            self._kept_from = 0
        self._position = self._kept_from + count
        self._kept = None

    def release(self) -> None:
        """Stop keeping text."""
        self._kept = None

    def begin_capture(self, sink: Callable[[str], None]) -> None:
        """Pass the text that is read from here on to `sink`, chunk by chunk."""
        self._sink, self._sunk_to = sink, self._position

    def flush_capture(self) -> None:
        """Pass on what was read since the last flush."""
        if self._sink is not None and self._position > self._sunk_to:
            self._sink(self._text[self._sunk_to : self._position])
            self._sunk_to = self._position

    def end_capture(self) -> None:
        """Pass on the rest, and stop."""
        self.flush_capture()
        self._sink = None

    def replace_next(self, replacement: str) -> None:
        """Pass one character; the sink gets the replacement instead."""
        self.flush_capture()
        self._position += 1
        if self._sink is not None:
            self._sink(replacement)
        self._sunk_to = self._position
