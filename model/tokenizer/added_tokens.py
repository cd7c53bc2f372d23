"""AddedTokens: tokens that are matched in a text before the vocabulary encodes the rest."""

import re
import unicodedata
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from caravan.model.tokenizer.literal_search import LiteralSearch
from caravan.model.tokenizer.vocabulary import TokenType

# Unicode's White_Space, and what belongs to a word: the classes \s and \w of the library that defines the flags.
_SPACES = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))
_WORD_CATEGORIES = frozenset({"Lu", "Ll", "Lt", "Lm", "Lo", "Mn", "Mc", "Me", "Nd", "Nl", "Pc"})
_OTHER_WORD = re.compile("[\u200c\u200d\u24b6-\u24e9\U0001f130-\U0001f149\U0001f150-\U0001f169\U0001f170-\U0001f189]")


@dataclass(frozen=True, kw_only=True)
class AddedToken:
    """A token with its rules. Source: AddedToken of the library `tokenizers`."""

    text: str
    token_id: int
    is_special: bool  # text where special tokens are not parsed
    takes_space_before: bool = False  # `lstrip`: with all white space before it
    takes_space_after: bool = False  # `rstrip`
    is_whole_word: bool = False  # `single_word`: only without a word character before or after it


@dataclass(frozen=True)
class TextPart:
    """Text between added tokens; `guards` are the places in it where a guard was, in ascending order."""

    text: str
    is_start: bool  # whether the whole text begins with it
    guards: tuple[int, ...] = ()

    def guarded(self, guard: str) -> str:
        """Return the text with its guards."""
        bounds = [0, *self.guards, len(self.text)]
        return guard.join(self.text[start:end] for start, end in pairwise(bounds))


class AddedTokens:
    """Added tokens of one vocabulary. The leftmost match wins, and of several there the longest."""

    def __init__(self, tokens: Sequence[AddedToken]) -> None:
        self._tokens = {token.text: token for token in tokens if token.text}
        self._search = LiteralSearch(self._tokens)
        self.has_ordinary = any(not token.is_special for token in self._tokens.values())
        self.special = {text: token.token_id for text, token in self._tokens.items() if token.is_special}

    def split(self, text: str, *, parse_special: bool, guard: str = "") -> Iterator[int | TextPart]:
        """Yield the ids of the tokens in a text and the parts between them, in order.

        Without `parse_special` special tokens are text. With it, those that the character `guard` interrupts are; all
        guards are removed. Source: find_matches in added_vocabulary.rs of the library `tokenizers`.
        """
        pieces = text.split(guard) if guard else [text]
        text, guards = "".join(pieces), [*accumulate(map(len, pieces[:-1]))]
        done = 0
        matches = self._search.matches(text)
        while match := next(matches, None):
            token = self._tokens[match.group()]
            if token.is_special and parse_special and _is_inside(guards, match.start(), match.end()):
                shorter = self._longest(text, match.start(), len(token.text), guards)
                matches = self._search.matches(text, match.start() + (1 if shorter is None else len(shorter.text)))
                if shorter is None:
                    continue
                token = shorter
            elif token.is_special and not parse_special:
                continue
            start, end = match.start(), match.start() + len(token.text)
            if token.is_whole_word and (_is_word(text[start - 1 : start]) or _is_word(text[end : end + 1])):
                continue
            if token.takes_space_before:
                while start > done and text[start - 1] in _SPACES:
                    start -= 1
                start = max(start, done)
            if token.takes_space_after:
                while end < len(text) and text[end] in _SPACES:
                    end += 1
            if done < start:
                yield _part(text, done, start, guards)
            yield token.token_id
            done = end
        if done < len(text):
            yield _part(text, done, len(text), guards)

    def _longest(self, text: str, start: int, below: int, guards: list[int]) -> AddedToken | None:
        """Return the longest token at `start` that is shorter than `below` characters and, if special, unguarded."""
        for length in range(below - 1, 0, -1):
            token = self._tokens.get(text[start : start + length])
            if token is not None and not (token.is_special and _is_inside(guards, start, start + length)):
                return token
        return None


def encode_parsed(added: AddedTokens, encode: Callable[[str], list[int]], text: str, guard: str) -> list[int]:
    """Return the token ids of a text in which special tokens are parsed; `encode` is for the text between them."""
    token_ids: list[int] = []
    for part in added.split(text, parse_special=True, guard=guard):
        token_ids += [part] if isinstance(part, int) else encode(part.text)
    return token_ids


def control_tokens(texts: Sequence[str], types: Sequence[TokenType]) -> AddedTokens:
    """Return the control tokens of a vocabulary whose file has no further rules for them."""
    return AddedTokens(
        [
            AddedToken(text=text, token_id=token_id, is_special=True)
            for token_id, (text, token_type) in enumerate(zip(texts, types, strict=True))
            if token_type is TokenType.CONTROL
        ]
    )


def _is_inside(guards: list[int], start: int, end: int) -> bool:
    """Return whether a guard was between two characters of text[start:end]."""
    index = bisect_right(guards, start)
    return index < len(guards) and guards[index] < end


def _is_word(character: str) -> bool:
    return character != "" and (
        unicodedata.category(character) in _WORD_CATEGORIES or _OTHER_WORD.match(character) is not None
    )


def _part(text: str, start: int, end: int, guards: list[int]) -> TextPart:
    inside = guards[bisect_right(guards, start) : bisect_right(guards, end - 1)] if guards else []
    return TextPart(text[start:end], start == 0, tuple(place - start for place in inside))
