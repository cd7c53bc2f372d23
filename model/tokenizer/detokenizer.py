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

    The results of `push` and `flush`, joined, are the bytes of all tokens decoded at once: invalid UTF-8 becomes U+FFFD
    exactly where `bytes.decode("utf-8", "replace")` puts it.

    By default the text continues a prompt, so a space at the beginning of its first token is kept. With
    `drops_first_space` it is a whole text, and the space that encoding has put before it is removed.
    """

    def __init__(
        self,
        tokenizer: TokenBytes,
        *,
        skip_special: bool = True,
        drops_first_space: bool = False,
        shown: Collection[int] = (),
    ) -> None:
        """Special tokens are left out, except those in `shown`."""
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
