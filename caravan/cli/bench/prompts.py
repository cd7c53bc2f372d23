"""PromptMaker: prompts with a given number of tokens, all different after their shared prefix."""

import random
from collections.abc import Sequence

# Ordinary tokens in the vocabularies of all Llamas: above special tokens and bytes, far below the end.
_TOKEN_IDS = range(1000, 8000)
# Each with the space before it is one token almost everywhere.
_WORDS = """
the of and to in a is that for it as was with be by on not he his but at are this have from or had an they which
one you were all her she there would their we him been has when who will no more if out so up said what its about
than into them can only other time new some could these two may first then do any like my now over such our man
"""

Prompt = list[int] | str


class PromptMaker:
    """Makes prompts of token ids, or of words where the server takes text only.

    A text has `words_per_token` words for each token, after `overhead_tokens` that the server adds (a template, BOS).
    """

    def __init__(
        self,
        *,
        seed: int,
        shared_prefix_tokens: int = 0,
        is_text: bool = False,
        overhead_tokens: int = 0,
        words_per_token: float = 1.0,
    ) -> None:
        self._source = random.Random(f"prompts {seed}")  # noqa: S311  # the same again, not a secret
        self._units: Sequence[int | str] = _WORDS.split() if is_text else _TOKEN_IDS
        self._overhead_tokens = overhead_tokens
        self._words_per_token = words_per_token
        self._is_text = is_text
        self._prefix = self._draw(self._num_units(shared_prefix_tokens))
        self.shared_prefix_tokens = shared_prefix_tokens

    def prompt(self, num_tokens: int) -> Prompt:
        """Return the shared prefix followed by `num_tokens` tokens; a text has at least one word."""
        num_units = self._num_units(num_tokens) - self._overhead_tokens
        units = [*self._prefix, *self._draw(max(num_units, 0 if self._prefix else 1))]
        if self._is_text:
            return " ".join(map(str, units))
        return [unit for unit in units if isinstance(unit, int)]

    def _num_units(self, num_tokens: int) -> int:
        return round(num_tokens * self._words_per_token) if self._is_text else num_tokens

    def _draw(self, count: int) -> list[int | str]:
        return self._source.choices(self._units, k=count)
