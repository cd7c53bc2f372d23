"""Speculation: draft the next tokens of a sequence from its own text and verify them all in one step.

Prompt lookup (Saxena, 2023, Prompt Lookup Decoding): where the last few tokens occurred before, the text may continue
as it did there. Draft tokens are verified as in speculative decoding (Leviathan et al., arXiv:2211.17192), but more
simply: a sampled token is a function of the text, the seed and the position, so a draft token is accepted if it is the
one that is sampled after those before it. The answer stays the same; only the number of steps changes.
"""

import heapq
from collections.abc import Sequence as Seq

from typing_extensions import override

NGRAM_SIZES = (3, 2)  # tokens that must have occurred before; longer n-grams are looked up first
MAX_DRAFT_TOKENS = 8  # of one sequence in one step
MAX_ROWS = 32  # tokens in a step with draft tokens
FIXED_COST_ROWS = 10  # fixed cost of a step on a CPU, in rows; see pays()
LEARNING_RATE = 0.15  # weight of the newest token in the acceptance estimates
FIRST_ACCEPTANCE, NEXT_ACCEPTANCE = 0.3, 0.6  # before the first observation


def pays(chance: float, num_rows: int, fixed_rows: float = FIXED_COST_ROWS) -> bool:
    """Return whether one more row, which gives a token with this probability, is worth its cost in a step of num_rows.

    A step costs about as much as fixed_rows + num_rows rows (the weights are read once for all rows) and gives a
    token for each row. One more row pays if it costs less than its expected tokens cost otherwise.
    """
    return chance * (fixed_rows + num_rows) > num_rows


def ngram_of(token_ids: Seq[int], end: int, size: int) -> int:
    """Return the n-gram of the size tokens before a position, as a number."""
    ngram = size
    for token_id in token_ids[end - size : end]:
        ngram = ngram << 20 | token_id
    return ngram


class Lookup:
    """The next tokens of a sequence as they stand in some text, and how often such predictions were right.

    The estimates learn from every output token, even while there are no draft tokens, so they follow a sequence that
    begins or ceases to repeat the text.
    """

    def __init__(self) -> None:
        self.first_acceptance = FIRST_ACCEPTANCE  # of a draft token after a wrong one, or after none
        self.next_acceptance = NEXT_ACCEPTANCE  # of a draft token after a right one
        self._source: int | None = None  # position of the token that is the next draft
        self._was_right = False  # the last draft token

    @property
    def acceptance(self) -> float:
        """The probability that the first draft token is right; 0 if there is none."""
        if self._source is None:
            return 0.0
        return self.next_acceptance if self._was_right else self.first_acceptance

    def observe(self, token_ids: Seq[int]) -> None:
        """Learn from the tokens of a sequence that are new since the last call."""
        raise NotImplementedError

    def draft(self, token_ids: Seq[int], num_tokens: int) -> tuple[int, ...]:
        """Return num_tokens draft tokens, or fewer where the text ends."""
        raise NotImplementedError

    def _learn(self, *, is_right: bool) -> None:
        if self._was_right:
            self.next_acceptance += LEARNING_RATE * (is_right - self.next_acceptance)
        else:
            self.first_acceptance += LEARNING_RATE * (is_right - self.first_acceptance)


class PromptLookup(Lookup):
    """The n-grams of one sequence, with the token that followed each. Each token is observed in constant time."""

    def __init__(self, num_prompt_tokens: int) -> None:
        super().__init__()
        self._num_prompt_tokens = num_prompt_tokens
        self._num_seen = 0
        self._follower: dict[int, int] = {}  # n-gram -> the position after its latest occurrence

    @override
    def observe(self, token_ids: Seq[int]) -> None:
        for position in range(self._num_seen, len(token_ids)):
            if self._source is not None:
                is_right = token_ids[self._source] == token_ids[position]
                if position >= self._num_prompt_tokens:
                    self._learn(is_right=is_right)
                self._was_right = is_right
            source = self._source + 1 if self._source is not None and self._was_right else None  # a longer match
            for size in NGRAM_SIZES:
                if position + 1 >= size:
                    ngram = ngram_of(token_ids, position + 1, size)
                    if source is None:
                        source = self._follower.get(ngram)
                    self._follower[ngram] = position + 1
            self._source = source
            self._was_right = self._was_right and source is not None
        self._num_seen = len(token_ids)

    @override
    def draft(self, token_ids: Seq[int], num_tokens: int) -> tuple[int, ...]:
        """Return num_tokens draft tokens: those that followed before, repeated where the text ends."""
        assert self._source is not None
        text = list(token_ids[self._source : self._source + num_tokens])
        period = len(token_ids) - self._source
        while len(text) < num_tokens:
            text.append(text[-period])
        return tuple(text)


def allocate_draft_tokens(
    lookups: Seq[Lookup],
    limits: Seq[int],
    num_rows: int,
    max_rows: int = MAX_ROWS,
    fixed_rows: float = FIXED_COST_ROWS,
) -> list[int]:
    """Return the number of draft tokens of each sequence, at most its limit, in a step with num_rows rows so far.

    The most likely draft token comes first. A draft token is accepted only if those before it are, so probabilities are
    multiplied.
    """
    counts = [0] * len(lookups)
    heap = [(-lookup.acceptance, index) for index, lookup in enumerate(lookups) if limits[index] > 0]
    heapq.heapify(heap)
    while heap and num_rows < max_rows and pays(-heap[0][0], num_rows, fixed_rows):
        chance, index = heap[0]
        counts[index] += 1
        num_rows += 1
        if counts[index] < min(limits[index], MAX_DRAFT_TOKENS):
            heapq.heapreplace(heap, (chance * lookups[index].next_acceptance, index))
        else:
            heapq.heappop(heap)
    return counts
