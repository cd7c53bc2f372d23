"""StopStrings: find the first of several strings in text that arrives in parts."""

from collections import deque
from collections.abc import Sequence


class StopStrings:
    """The automaton of one request's stop strings; it is immutable and shared by all choices.

    A state is the longest suffix of the text that is a prefix of a stop string. Reading a character
    takes amortized constant time for any number of strings.
    Source: Aho and Corasick, 1975, Efficient String Matching (doi:10.1145/360825.360855).
    """

    def __init__(self, strings: Sequence[str]) -> None:
        if not all(strings):
            raise ValueError("A stop string must have at least one character.")
        self._next: list[dict[str, int]] = [{}]  # by state: the next state for each character
        self._fallback: list[int] = [0]  # by state: the state of its longest proper suffix
        self.depth: list[int] = [0]  # by state: its length in characters
        self.match_length: list[int] = [0]  # by state: length of the longest stop string that ends here, or 0
        for string in strings:
            self._add(string)
        self._link()

    @property
    def is_empty(self) -> bool:
        """Whether there are no stop strings."""
        return len(self.depth) == 1

    def step(self, state: int, character: str) -> int:
        """Return the state after `character`; the initial state is 0."""
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
        """Set the fallbacks breadth-first: a state's fallback has a smaller depth."""
        queue = deque(self._next[0].values())
        while queue:
            state = queue.popleft()
            for character, child in self._next[state].items():
                self._fallback[child] = self.step(self._fallback[state], character)
                if not self.match_length[child]:
                    self.match_length[child] = self.match_length[self._fallback[child]]
                queue.append(child)


class TextCutter:
    """Cuts the text of one choice at the first stop string.

    The first one is the one that ends first; of several that end together, the longest. The result does not depend on
    how the text is split into parts.
    """

    def __init__(self, stop_strings: StopStrings, *, include_match: bool = False) -> None:
        self._stop_strings = stop_strings
        self._include_match = include_match
        self._state = 0
        self._held = ""  # the suffix that could still become a stop string
        self.match = ""  # the stop string that ended the text

    def push(self, text: str, *, may_stop: bool = True) -> tuple[str, bool]:
        """Return the text that can be sent now, and whether a stop string ended it.

        A stop string that completes while `may_stop` is false is ordinary text.
        """
        if self._stop_strings.is_empty:
            return text, False
        text_so_far = self._held + text
        for end, character in enumerate(text, start=len(self._held) + 1):
            self._state = self._stop_strings.step(self._state, character)
            match_length = self._stop_strings.match_length[self._state]
            if match_length and may_stop:
                self._held, self.match = "", text_so_far[end - match_length : end]
                return text_so_far[: end if self._include_match else end - match_length], True
        num_safe = len(text_so_far) - self._stop_strings.depth[self._state]
        self._held = text_so_far[num_safe:]
        return text_so_far[:num_safe], False

    def flush(self) -> str:
        """Return the text held back; call it at the end of the text."""
        held, self._held = self._held, ""
        return held
