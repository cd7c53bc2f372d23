"""The guard: a character that prevents text from clients from being tokenized as special tokens.

A prompt is one string in which the chat template's `<|im_start|>` must become one token, while the same characters in
a message must stay ordinary text. So the text of every special token in a message is split by a guard, a character
that occurs nowhere else; the tokenizer removes it after it has found the special tokens.
"""

from collections.abc import Iterable, Iterator

from caravan.model.tokenizer.literal_search import LiteralSearch

Json = str | int | float | bool | None | list["Json"] | dict[str, "Json"]

_PRIVATE_USE = range(0xE000, 0xF900)
_WINDOW_CHARACTERS = 2**16  # scanned at a time: the GIL is held meanwhile


def unused_characters(texts: Iterable[str], count: int) -> list[str]:
    """Return `count` private-use characters that occur in none of `texts`.

    Raises ValueError if the texts leave too few.
    """
    used: set[str] = set()
    for text in texts:
        if not text.isascii():
            for start in range(0, len(text), _WINDOW_CHARACTERS):
                used.update(text[start : start + _WINDOW_CHARACTERS])
    unused = [character for character in map(chr, _PRIVATE_USE) if character not in used]
    if len(unused) < count:
        raise ValueError("The messages use all private-use characters U+E000..U+F8FF; at least two must be unused.")
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


def all_keys(value: Json) -> Iterator[str]:
    """Yield every key of the objects in `value`."""
    if isinstance(value, list):
        for item in value:
            yield from all_keys(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from all_keys(item)


class SpecialTokenGuard:
    """Inserts `guard` after the first character of each special token's text."""

    def __init__(self, special_tokens: LiteralSearch, guard: str) -> None:
        self._guard = guard
        self._special_tokens = special_tokens

    def apply(self, value: Json) -> Json:
        """Return `value` with every string in it guarded; keys are unchanged, since the template looks them up."""
        if isinstance(value, str):
            return self._guarded(value)
        if isinstance(value, list):
            return [self.apply(item) for item in value]
        if isinstance(value, dict):
            return {key: self.apply(item) for key, item in value.items()}
        return value

    def _guarded(self, text: str) -> str:
        parts = []
        end = 0
        for start in self._special_tokens.starts(text):
            parts += [text[end : start + 1], self._guard]
            end = start + 1
        guarded = "".join([*parts, text[end:]]) if parts else text
        # A template may concatenate or trim strings: guard a special token that could begin at the end of this one.
        stripped = guarded.rstrip()
        partial = self._special_tokens.partial_start(stripped)
        return guarded if partial is None else guarded[: partial + 1] + self._guard + guarded[partial + 1 :]
