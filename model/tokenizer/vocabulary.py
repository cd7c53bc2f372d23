"""Vocabulary: what a tokenizer needs of its tokens, whatever library splits the text, and what can be wrong."""

from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import Protocol


class UnsupportedTokenizer(ValueError):
    """A kind of tokenizer this server does not have."""


class BrokenTokenizer(ValueError):
    """A tokenizer that lacks something or contradicts itself."""


class Unencodable(ValueError):
    """Text with a character the vocabulary has no token for."""

    def __init__(self, character: str) -> None:
        super().__init__(f"This model's vocabulary has no token for U+{ord(character):04X}. Leave the character out.")


class TokenType(IntEnum):
    """What a token is for; SentencePiece and GGUF use the same numbers."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6

    @property
    def is_text(self) -> bool:
        """Whether a token of this type is a part of the text, rather than a sign beside it."""
        return self in (TokenType.NORMAL, TokenType.USER_DEFINED, TokenType.BYTE)


class Vocabulary(Protocol):
    """Tokens by id, and the way from ordinary text to them."""

    texts: Sequence[str]  # as the file has them
    types: Sequence[TokenType]
    token_bytes: Sequence[bytes]  # what each token writes
    adds_space_prefix: bool  # whether encoded text begins with a space that the text does not have
    special_tokens: Mapping[str, int]  # what `encode_parsed` looks for

    def encode(self, text: str) -> list[int]:
        """Return the token ids of `text`, in which no control token is looked for.

        Raises Unencodable.
        """

    def encode_parsed(self, text: str, guard: str) -> list[int]:
        """Return the token ids of `text`, in which the text of a special token is that token.

        `guard`, if not empty, is a character that hides the special tokens it interrupts; it is not part of the text.
        Raises Unencodable.
        """


class ResizedVocabulary:
    """Another vocabulary with as many tokens as a model has: the last ones left out, or unused ones added."""

    def __init__(self, vocabulary: Vocabulary, vocab_size: int) -> None:
        added = range(len(vocabulary.texts), vocab_size)
        self._vocabulary = vocabulary
        self._vocab_size = vocab_size
        self.adds_space_prefix = vocabulary.adds_space_prefix
        self.special_tokens: Mapping[str, int] = {
            text: i for text, i in vocabulary.special_tokens.items() if i < vocab_size
        }
        self.texts: Sequence[str] = [*vocabulary.texts[:vocab_size], *(f"<unused {i}>" for i in added)]
        self.types: Sequence[TokenType] = [*vocabulary.types[:vocab_size], *(TokenType.UNUSED for _ in added)]
        self.token_bytes: Sequence[bytes] = [*vocabulary.token_bytes[:vocab_size], *(b"" for _ in added)]

    def encode(self, text: str) -> list[int]:
        """See Vocabulary; text that needs a token left out is Unencodable."""
        return self._kept(self._vocabulary.encode(text))

    def encode_parsed(self, text: str, guard: str) -> list[int]:
        """See Vocabulary; text that needs a token left out is Unencodable."""
        return self._kept(self._vocabulary.encode_parsed(text, guard))

    def _kept(self, token_ids: list[int]) -> list[int]:
        for token_id in token_ids:
            if token_id >= self._vocab_size:
                raise Unencodable(self._vocabulary.texts[token_id][0])
        return token_ids
