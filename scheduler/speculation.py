"""Speculation: guess the next tokens of a sequence from its own text and let one step check them all.

Prompt lookup (Saxena, 2023, Prompt Lookup Decoding): where the last few tokens occurred before, the text may go on as
it did there. The guess is checked as in speculative decoding (Leviathan et al., arXiv:2211.17192), but more simply: a
token drawn here is a function of the text, the seed and the position, so a guessed token is right if it is the one that
is drawn after those before it. Nothing about the answer changes, only how many steps it takes.
"""

import heapq
from collections.abc import Sequence as Seq

NGRAM_SIZES = (3, 2)  # tokens that must have occurred before; the longer ones are asked first
MAX_DRAFT_TOKENS = 8  # guessed at once for one sequence
MAX_ROWS = 32  # tokens in a step that is given guesses
FIXED_COST_ROWS = 10  # what a step costs even without rows, in rows; see pays()
LEARNING_RATE = 0.15  # weight of the newest token in the acceptance estimates
FIRST_ACCEPTANCE, NEXT_ACCEPTANCE = 0.3, 0.6  # until there is something to learn from


def pays(chance: float, num_rows: int) -> bool:
    """Return whether a step of num_rows rows becomes better by one more that brings a token with this chance.

    A step costs about as much as FIXED_COST_ROWS + num_rows rows (the weights are read once, whatever the rows) and
    brings a token for each row. One more row pays if it costs less than the tokens it brings cost otherwise.
    """
    return chance * (FIXED_COST_ROWS + num_rows) > num_rows


class PromptLookup:
    """The n-grams of one sequence, and how often the token that followed them before came again.

    Each token is taken in once, in constant time. Guesses are judged by every token of the output, also while none are
    computed: so a sequence that begins to repeat itself is noticed, and one that has ceased to.
    """

    def __init__(self, num_prompt_tokens: int) -> None:
        self.first_acceptance = FIRST_ACCEPTANCE  # of a guess after one that was wrong, or none
        self.next_acceptance = NEXT_ACCEPTANCE  # of a guess after one that was right
        self._num_prompt_tokens = num_prompt_tokens
        self._num_seen = 0
        self._follower: dict[int, int] = {}  # n-gram -> the position after its latest occurrence
        self._source: int | None = None  # position whose token is guessed to come next
        self._was_right = False  # the last guess

    def observe(self, token_ids: Seq[int]) -> None:
        """Take in the tokens of a sequence that are new since the last time."""
        for position in range(self._num_seen, len(token_ids)):
            if self._source is not None:
                is_right = token_ids[self._source] == token_ids[position]
                if position >= self._num_prompt_tokens:
                    self._learn(is_right)
                self._was_right = is_right
            source = self._source + 1 if self._source is not None and self._was_right else None  # a longer match
            for size in NGRAM_SIZES:
                if position + 1 >= size:
                    ngram = size
                    for token_id in token_ids[position + 1 - size : position + 1]:
                        ngram = ngram << 20 | token_id
                    if source is None:
                        source = self._follower.get(ngram)
                    self._follower[ngram] = position + 1
            self._source = source
            self._was_right = self._was_right and source is not None
        self._num_seen = len(token_ids)

    @property
    def acceptance(self) -> float:
        """The chance that the first guessed token is right; 0 if there is no guess."""
        if self._source is None:
            return 0.0
        return self.next_acceptance if self._was_right else self.first_acceptance

    def guess(self, token_ids: Seq[int], num_tokens: int) -> tuple[int, ...]:
        """Return the next tokens as they followed before; a text that repeats itself goes on repeating itself."""
        assert self._source is not None
        text = list(token_ids[self._source : self._source + num_tokens])
        period = len(token_ids) - self._source
        while len(text) < num_tokens:
            text.append(text[-period])
        return tuple(text)

    def _learn(self, is_right: bool) -> None:
        if self._was_right:
            self.next_acceptance += LEARNING_RATE * (is_right - self.next_acceptance)
        else:
            self.first_acceptance += LEARNING_RATE * (is_right - self.first_acceptance)


def share_out(lookups: Seq[PromptLookup], limits: Seq[int], num_rows: int, max_rows: int = MAX_ROWS) -> list[int]:
    """Return how many tokens to guess for each sequence, at most its limit, in a step that has num_rows rows so far.

    The most likely guess comes first. A guess counts only if those before it were right, so its chance is the product.
    """
    counts = [0] * len(lookups)
    heap = [(-lookup.acceptance, index) for index, lookup in enumerate(lookups) if limits[index] > 0]
    heapq.heapify(heap)
    while heap and num_rows < max_rows and pays(-heap[0][0], num_rows):
        chance, index = heap[0]
        counts[index] += 1
        num_rows += 1
        if counts[index] < min(limits[index], MAX_DRAFT_TOKENS):
            heapq.heapreplace(heap, (chance * lookups[index].next_acceptance, index))
        else:
            heapq.heappop(heap)
    return counts
