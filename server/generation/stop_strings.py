"""StopStrings: find the first of several strings in text that comes in pieces."""

from collections import deque
from collections.abc import Sequence


class StopStrings:
    """The automaton of one request's stop strings; frozen, so that all its choices share it.

    A state stands for the longest end of the text so far that could still become a stop string. Reading a character
    takes constant time on average, whatever the number of strings.
    Source: Aho and Corasick, 1975, Efficient String Matching (doi:10.1145/360825.360855).
    """

    def __init__(self, strings: Sequence[str]) -> None:
        if not all(strings):
            raise ValueError("A stop string is empty; it must have at least one character.")
        self._next: list[dict[str, int]] = [{}]  # by state: the states one character further
        self._fallback: list[int] = [0]  # by state: the state of its longest proper end
        self.depth: list[int] = [0]  # by state: how many characters of the text it holds
        self.match_length: list[int] = [0]  # by state: length of the longest stop string that ends here, or 0
        for string in strings:
            self._add(string)
        self._link()

    @property
    def is_empty(self) -> bool:
        """There is nothing to look for."""
        return len(self.depth) == 1

    def step(self, state: int, character: str) -> int:
        """Return the state after `character`; the state before the first one is 0."""
        while character not in self._next[state] and state:
            state = self._fallback[state]
        return self._next[state].get(character, 0)

    def _add(self, string: str) -> None:
        state = 0
        for character in string:
            if character not in self._next[state]:
                self._next[state][character] = len(self.depth)
                self._next.append({})
                self._fallback.append(0)
                self.depth.append(self.depth[state] + 1)
                self.match_length.append(0)
            state = self._next[state][character]
        self.match_length[state] = len(string)

    def _link(self) -> None:
        """Set the fallbacks breadth first: a state's fallback is less deep than the state."""
        queue = deque(self._next[0].values())
        while queue:
            state = queue.popleft()
            for character, child in self._next[state].items():
                self._fallback[child] = self.step(self._fallback[state], character)
                if not self.match_length[child]:
                    self.match_length[child] = self.match_length[self._fallback[child]]
                queue.append(child)


class TextCutter:
    """The text of one choice on its way out, cut at the first stop string.

    First means: ends first; of those that end together, the longest. How the text is split into pieces makes no
    difference.
    """

    def __init__(self, stop_strings: StopStrings, *, include_match: bool = False) -> None:
        self._stop_strings = stop_strings
        self._include_match = include_match
        self._state = 0
        self._held = ""  # the end of the text that could still become a stop string

    def push(self, text: str, *, may_stop: bool = True) -> tuple[str, bool]:
        """Return the text that may now go out, and whether a stop string ended it.

        A stop string completed while `may_stop` is false is ordinary text.
        """
        if self._stop_strings.is_empty:
            return text, False
        num_held = len(self._held)
        text_so_far = self._held + text
        for end, character in enumerate(text, start=num_held + 1):
            self._state = self._stop_strings.step(self._state, character)
            match_length = self._stop_strings.match_length[self._state]
            if match_length and may_stop:
                self._held = ""
                return text_so_far[: end if self._include_match else end - match_length], True
        num_safe = len(text_so_far) - self._stop_strings.depth[self._state]
        self._held = text_so_far[num_safe:]
        return text_so_far[:num_safe], False

    def flush(self) -> str:
        """Return the text held back: no more text comes, so it is no stop string."""
        held, self._held = self._held, ""
        return held
