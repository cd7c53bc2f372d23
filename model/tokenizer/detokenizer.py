"""Detokenizer: decodes tokens one at a time to text that never has to be corrected."""

import codecs
from collections.abc import Collection
from typing import Protocol


class TokenBytes(Protocol):
    """The methods of a tokenizer that a detokenizer needs."""

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes of a token; they need not be whole characters."""

    def is_special(self, token_id: int) -> bool:
        """Return whether the token is special, not text."""


class Detokenizer:
    """The text of one sequence of tokens.

    What was pushed and flushed, joined, is the bytes of all tokens decoded at once: bytes that are no UTF-8 become
    U+FFFD just where `bytes.decode("utf-8", "replace")` puts it.

    The text goes on from a prompt by default, so it keeps the space a SentencePiece token begins with: prompt and
    text joined must read right. A whole text that was encoded with a space put before it loses that one with
    `drops_first_space`.
    """

    def __init__(
        self,
        tokenizer: TokenBytes,
        *,
        skip_special: bool = True,
        drops_first_space: bool = False,
        shown: Collection[int] = (),
    ) -> None:
        """Special tokens are left out, but for those that are `shown`."""
        self._tokenizer = tokenizer
        self._shown = shown
        self._skip_special = skip_special
        self._drops_first_space = drops_first_space  # until the first character is known
        self._held = b""  # the beginning of a character

    def push(self, token_id: int) -> str:
        """Return the characters that `token_id` completes."""
        if self._skip_special and self._tokenizer.is_special(token_id) and token_id not in self._shown:
            return ""
        received = self._held + self._tokenizer.token_bytes(token_id)
        text, num_decoded = codecs.utf_8_decode(received, "replace")  # stops before an incomplete character
        self._held = received[num_decoded:]
        return self._without_first_space(text) if self._drops_first_space else text

    def flush(self) -> str:
        """Return U+FFFD if the text ends inside a character; end the text."""
        text, self._held = self._held.decode("utf-8", "replace"), b""
        return self._without_first_space(text) if self._drops_first_space else text

    def _without_first_space(self, text: str) -> str:
        if not text:
            return text
        self._drops_first_space = False
        return text.removeprefix(" ")
