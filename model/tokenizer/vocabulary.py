"""Vocabulary: the interface between a tokenizer and its tokens, and the errors of tokenizers."""

from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import Protocol


class UnsupportedTokenizer(ValueError):
    """A kind of tokenizer that is not supported."""


class BrokenTokenizer(ValueError):
    """A tokenizer that is incomplete or contradicts itself."""


class Unencodable(ValueError):
    """Text with a character for which the vocabulary has no token."""

    def __init__(self, character: str) -> None:
        super().__init__(f"This model's vocabulary has no token for U+{ord(character):04X}. Leave the character out.")


class TokenType(IntEnum):
    """The type of a token; SentencePiece and GGUF use the same numbers."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6

    @property
    def is_text(self) -> bool:
        """Whether tokens of this type are part of the text."""
        return self in (TokenType.NORMAL, TokenType.USER_DEFINED, TokenType.BYTE)


class Vocabulary(Protocol):
    """Tokens by id, and the encoding of text."""

    texts: Sequence[str]  # as the file has them
    types: Sequence[TokenType]
    token_bytes: Sequence[bytes]  # the bytes of each token
    adds_space_prefix: bool  # whether encoding adds a space before the text
    special_tokens: Mapping[str, int]  # matched by `encode_parsed`

    def encode(self, text: str) -> list[int]:
        """Return the token ids of `text`, without matching control tokens.

        Raises Unencodable.
        """

    def encode_parsed(self, text: str, guard: str) -> list[int]:
        """Return the token ids of `text`, in which the text of a special token is that token.

        `guard`, if not empty, is a character that hides the special tokens it interrupts; it is not part of the text.
        Raises Unencodable.
        """


class ResizedVocabulary:
    """A vocabulary with the size of a model: the last tokens removed, or unused ones added."""

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
        """See Vocabulary; text that needs a removed token is Unencodable."""
        return self._kept(self._vocabulary.encode(text))

    def encode_parsed(self, text: str, guard: str) -> list[int]:
        """See Vocabulary; text that needs a removed token is Unencodable."""
        return self._kept(self._vocabulary.encode_parsed(text, guard))

    def _kept(self, token_ids: list[int]) -> list[int]:
        for token_id in token_ids:
            if token_id >= self._vocab_size:
                raise Unencodable(self._vocabulary.texts[token_id][0])
        return token_ids
