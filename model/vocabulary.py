"""Vocabulary: what a tokenizer needs of its tokens, whatever library splits the text, and what can be wrong."""

from collections.abc import Sequence
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

    def encode(self, text: str) -> list[int]:
        """Return the token ids of `text`, in which no control token is looked for.

        Raises Unencodable.
        """
