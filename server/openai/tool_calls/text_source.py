"""TextSource: text that arrives in pieces, read one character at a time and, where a reading fails, once more."""

import re
from collections.abc import Callable, Generator
from typing import TypeVar

T = TypeVar("T")
Steps = Generator[None, None, T]  # a reading that yields whenever it needs more text

_SPACE = re.compile(r"[ \t\r\n]+")  # of JSON


class CutOff(Exception):
    """The text ended before the reading did."""


class TextSource:
    """The unread text, and what has to be kept of the text already read.

    Each piece is looked at once, apart from what `rewind` returns to.
    """

    def __init__(self) -> None:
        self._text = ""  # the latest piece
        self._position = 0
        self._is_ended = False
        self._kept: list[str] | None = None  # earlier pieces since `keep`
        self._kept_from = 0  # where in the latest piece the kept text begins or goes on
        self._sink: Callable[[str], None] | None = None
        self._sunk_to = 0  # up to where the latest piece was passed to the sink

    def feed(self, text: str) -> None:
        """Add the next piece; what came before it must have been read."""
        if self._kept is not None:
            self._kept.append(self._text[self._kept_from :])
        self._text, self._position, self._kept_from, self._sunk_to = text, 0, 0, 0

    def end(self) -> None:
        """Declare that nothing follows."""
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

    def advance(self, count: int = 1) -> None:
        """Pass characters that `peek` has shown or `take` could have taken."""
        self._position += count

    def take(self, pattern: re.Pattern[str]) -> str:
        """Pass what the pattern matches of the text that is there already, and return it."""
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
        """Pass what the text and `expected` begin with alike; return its length."""
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
        """Go back to `count` characters after the place of `keep`, and keep nothing any more."""
        assert self._kept is not None
        if self._kept:
            self._text = "".join(self._kept) + self._text[self._kept_from :]
            self._kept_from = 0
        self._position = self._kept_from + count
        self._kept = None

    def release(self) -> None:
        """Keep nothing any more."""
        self._kept = None

    def begin_capture(self, sink: Callable[[str], None]) -> None:
        """Pass the text that is read from here on to `sink`, piece by piece."""
        self._sink, self._sunk_to = sink, self._position

    def flush_capture(self) -> None:
        """Pass on what was read since the last flush."""
        if self._sink is not None and self._position > self._sunk_to:
            self._sink(self._text[self._sunk_to : self._position])
            self._sunk_to = self._position

    def end_capture(self) -> None:
        """Pass on the rest and no more."""
        self.flush_capture()
        self._sink = None

    def replace_next(self, replacement: str) -> None:
        """Pass one character; the sink gets the replacement instead."""
        self.flush_capture()
        self._position += 1
        if self._sink is not None:
            self._sink(replacement)
        self._sunk_to = self._position
