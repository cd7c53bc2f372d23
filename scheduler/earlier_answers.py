"""EarlierAnswers: recent answers, in which sequences of the same API key look for draft tokens.

Agents and templates write the same passages again and again. What followed the last tokens of a sequence in an earlier
answer may follow again. Answers are never looked up for another key or another cache salt: how fast a text comes would
show that somebody else got it.
"""

from collections import Counter, OrderedDict
from collections.abc import Sequence as Seq

from typing_extensions import override

from caravan.scheduler.messages import Request
from caravan.scheduler.speculation import Lookup, ngram_of

NGRAM_SIZE = 4  # tokens that must have occurred in an answer
SECTION_TOKENS = 4096  # an owner has two sections
MAX_OWNERS = 32  # keys and salts whose answers are kept
END = -1  # after each answer


class _Section:
    """Answers end to end, and for each of their n-grams the position after its latest occurrence."""

    def __init__(self) -> None:
        self.token_ids: list[int] = []
        self.follower: dict[int, int] = {}


class OwnAnswers:
    """The latest answers of one key with one cache salt, in two sections; the older one is dropped as a whole."""

    def __init__(self) -> None:
        self._old, self._new = _Section(), _Section()

    @property
    def num_tokens(self) -> int:
        """Tokens of both sections, with an end for each answer."""
        return len(self._old.token_ids) + len(self._new.token_ids)

    def clear(self) -> None:
        """Drop all answers; sequences that look them up find none."""
        self._old, self._new = _Section(), _Section()

    def add(self, answer: Seq[int]) -> None:
        """Add an answer, or the end of a very long one."""
        answer = answer[-SECTION_TOKENS + 1 :]
        if len(answer) <= NGRAM_SIZE:
            return
        if len(self._new.token_ids) + len(answer) + 1 > SECTION_TOKENS:
            self._old, self._new = self._new, _Section()
        section = self._new
        start = len(section.token_ids)
        section.token_ids += (*answer, END)
        for position in range(start + NGRAM_SIZE, start + len(answer)):
            section.follower[ngram_of(section.token_ids, position, NGRAM_SIZE)] = position

    def find(self, ngram: int) -> tuple[list[int], int | None]:
        """Return the tokens of a section and the position after the latest occurrence of an n-gram, None without."""
        for section in (self._new, self._old):
            position = section.follower.get(ngram)
            if position is not None:
                return section.token_ids, position
        return [], None


class AnswerLookup(Lookup):
    """What followed in earlier answers, for one sequence: its answer is predicted, not its prompt."""

    def __init__(self, answers: OwnAnswers, num_prompt_tokens: int) -> None:
        super().__init__()
        self._answers = answers
        self._num_seen = num_prompt_tokens
        self._text: list[int] = []  # of the section that has the source

    @override
    def observe(self, token_ids: Seq[int]) -> None:
        for position in range(self._num_seen, len(token_ids)):
            if self._source is not None:
                is_right = self._text[self._source] == token_ids[position]
                self._learn(is_right=is_right)
                self._was_right = is_right
                self._source = self._source + 1 if is_right and self._text[self._source + 1] != END else None
            if self._source is None:
                self._was_right = False
                if position + 1 >= NGRAM_SIZE:
                    self._text, self._source = self._answers.find(ngram_of(token_ids, position + 1, NGRAM_SIZE))
        self._num_seen = len(token_ids)

    @override
    def draft(self, token_ids: Seq[int], num_tokens: int) -> tuple[int, ...]:
        assert self._source is not None
        found = self._text[self._source : self._source + num_tokens]
        return tuple(found[: found.index(END)] if END in found else found)


class EarlierAnswers:
    """The answers of the keys and salts that were used last."""

    def __init__(self) -> None:
        self._of: OrderedDict[tuple[str, str], OwnAnswers] = OrderedDict()

    def of(self, request: Request) -> OwnAnswers:
        """Return the answers of the key and the salt of a request."""
        owner = (request.key, request.cache_salt)
        answers = self._of.setdefault(owner, OwnAnswers())
        self._of.move_to_end(owner)
        if len(self._of) > MAX_OWNERS:
            self._drop_one()
        return answers

    def _drop_one(self) -> None:
        """Drop the answers that were used longest ago, of the key that has the most salts."""
        num_salts = Counter(key for key, _ in self._of)
        owner = next(owner for owner in self._of if num_salts[owner[0]] == max(num_salts.values()))
        self._of.pop(owner).clear()
