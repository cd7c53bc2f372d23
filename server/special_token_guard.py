"""The guard: what keeps text that a client sends from being read as special tokens.

A prompt is one string in which the chat template's `<|im_start|>` must become one token, while the same characters in
a message must stay ordinary text. So every special token's text inside the messages is interrupted by a guard, a
character that occurs nowhere else; the tokenizer removes it after it has looked for special tokens.
"""

import re
from collections.abc import Collection, Iterable, Iterator

Json = str | int | float | bool | None | list["Json"] | dict[str, "Json"]

_PRIVATE_USE = range(0xE000, 0xF900)


def unused_characters(texts: Iterable[str], count: int) -> list[str]:
    """Return `count` private-use characters that occur in none of `texts`.

    Raises ValueError if the texts leave too few.
    """
    used = set().union(*texts)
    unused = [character for character in map(chr, _PRIVATE_USE) if character not in used]
    if len(unused) < count:
        raise ValueError("The messages use every private-use character; leave at least two of U+E000..U+F8FF out.")
    return unused[:count]


def all_strings(value: Json) -> Iterator[str]:
    """Yield every string in `value`, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from all_strings(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from all_strings(item)


class SpecialTokenGuard:
    """Interrupts the text of special tokens with `guard`, after its first character."""

    def __init__(self, special_tokens: Collection[str], guard: str) -> None:
        self._guard = guard
        self._special_tokens = [text for text in special_tokens if text]
        # The lookahead takes nothing, so that special tokens that overlap are all found.
        alternatives = "|".join(map(re.escape, self._special_tokens)) or "(?!)"
        self._first_character = re.compile(f"(?=(?:{alternatives}))(.)", re.DOTALL)

    def apply(self, value: Json) -> Json:
        """Return `value` with every string in it guarded; keys stay, since the template looks them up."""
        if isinstance(value, str):
            return self._guarded(value)
        if isinstance(value, list):
            return [self.apply(item) for item in value]
        if isinstance(value, dict):
            return {key: self.apply(item) for key, item in value.items()}
        return value

    def _guarded(self, text: str) -> str:
        text = self._first_character.sub(lambda match: match.group() + self._guard, text)
        # A template may put two strings of a client side by side, or trim them: guard a special token that could
        # begin at the end of this one.
        stripped = text.rstrip()
        for start in range(max(0, len(stripped) - self._max_length), len(stripped)):
            ending = stripped[start:]
            if any(special.startswith(ending) for special in self._special_tokens):
                return text[: start + 1] + self._guard + text[start + 1 :]
        return text

    @property
    def _max_length(self) -> int:
        return max(map(len, self._special_tokens), default=0)
