"""CompiledGrammar: one grammar over the model's vocabulary, and the calls into llguidance that its matchers need.

How long a call takes depends on a stranger's grammar, so all that may take long let go of Python's lock. In llguidance
1.9 `validate_tokens` and `consume_token` do not, and keep to no limit; so tokens are judged by masks, and taken only
if a mask has allowed them.
"""

import contextlib
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from llguidance import LLExecutor, LLMatcher, LLTokenizer
from numpy.typing import NDArray

from caravan.scheduler.grammar_limits import GrammarLimits

CHEAP_SECONDS = 0.001  # of a mask: its tokens are taken with Python's lock held, which is quicker
_MAX_TOKENS_AT_ONCE = 64

CANNOT_COMPILE = "it cannot be compiled for this model's vocabulary within the limits"
TOO_COMPLEX = "where the text has come to, it cannot be followed within the limits"

Mask = NDArray[np.uint8]  # [bytes], a bit for each token that may come next, the lowest of a byte first


class GrammarProblem(Exception):
    """Why a grammar cannot be used, in words of ours: the library's hold the grammar and the text."""


class Position(NamedTuple):
    """Where a text has come to in its grammar."""

    state: LLMatcher
    mask: Mask
    seconds: float  # of processor time that the mask took


class Vocabulary(threading.local):
    """What one thread needs to consume tokens without Python's lock: the library lets go of it for two matchers."""

    def __init__(self, tokenizer: LLTokenizer) -> None:
        self.tokenizer = tokenizer
        self._executor = LLExecutor(1)
        self._second = LLMatcher(tokenizer, "", log_level=0)  # in an error state, so that it costs nothing

    def consume(self, state: LLMatcher, token_id: int) -> None:
        """Take a token into a state."""
        self._executor.consume_token_par([(state, token_id), (self._second, token_id)])


class CompiledGrammar:
    """One grammar of one key. Its matchers share the library's lexer, and a lock with it.

    The lexer grows with every text, and its limits hold for all of them together: one that has passed a limit is in an
    error state for all. What one text makes of a limit shows in a lexer of its own.
    """

    def __init__(self, text: str, limits: GrammarLimits, vocabulary: Callable[[], Vocabulary]) -> None:
        self.limits = limits
        self.problem = ""  # ends everything that has this grammar
        self.is_spoiled = False  # the problem was one text's: others are to have the grammar compiled again
        self._num_calls = 0  # that are waiting or running
        self._lock = threading.Lock()  # of this number
        self._lexer = threading.Lock()  # held as long as the library's: who waits for that may hold Python's lock
        self._text = text
        self._vocabulary = vocabulary
        self._compiled: LLMatcher | None = None

    @property
    def is_busy(self) -> bool:
        """Whether some call may hold the library's lock."""
        return self._num_calls > 0

    def begin_call(self) -> None:
        """Count a call that is about to be submitted."""
        with self._lock:
            self._num_calls += 1

    def end_call(self) -> None:
        """Count a call that has ended, or will never begin."""
        with self._lock:
            self._num_calls -= 1

    @staticmethod
    def position(state: LLMatcher) -> Position:
        """Return where a state is; raises GrammarProblem."""
        began_seconds = time.thread_time()
        mask = np.frombuffer(state.compute_bitmask(), dtype=np.uint8)  # without Python's lock
        _check(state)  # in an error state the mask allows the end alone
        return Position(state, mask, time.thread_time() - began_seconds)

    def next_position(self, state: LLMatcher) -> Position:
        """Return the position where a state is, while no other text uses the lexer; raises GrammarProblem."""
        with self._lexer:
            return self.position(state)

    def start(self, token_ids: list[int], *, is_alone: bool = False) -> Position:
        """Return the position behind these tokens; compiles the grammar if it was not yet. Raises GrammarProblem.

        It is compiled again if the lexer is used up, and for a matcher that is to have one alone.
        """
        if self.problem:
            raise GrammarProblem(self.problem)
        vocabulary = self._vocabulary()
        if self._compiled is not None and not is_alone:
            with contextlib.suppress(GrammarProblem):
                return self._behind(self._compiled, vocabulary, token_ids)
        compiled = LLMatcher(vocabulary.tokenizer, self._text, log_level=0, limits=self.limits.of_parser())
        if compiled.is_error():
            self.problem = CANNOT_COMPILE
            raise GrammarProblem(self.problem)
        if not is_alone:
            self._compiled = compiled
        return self._behind(compiled, vocabulary, token_ids)

    def _behind(self, compiled: LLMatcher, vocabulary: Vocabulary, token_ids: list[int]) -> Position:
        state = compiled.deep_copy()
        if token_ids:
            with self._lexer:
                _replay(vocabulary, state, token_ids)
        return self.next_position(state)

    def consume(self, state: LLMatcher, token_id: int, *, is_cheap: bool) -> bool:
        """Take a token that the last mask allowed; return whether nothing but the end can follow.

        Raises GrammarProblem. To judge the token again costs no more than that mask did; if it was cheap, Python's lock
        may as well be held.
        """
        if is_cheap:
            state.consume_token(token_id)
        else:
            self._vocabulary().consume(state, token_id)
        _check(state)
        return bool(state.is_stopped())


def _replay(vocabulary: Vocabulary, state: LLMatcher, token_ids: list[int]) -> None:
    """Take the tokens that a sequence has: ever more of them at once, with Python's lock, while that is quick."""
    start, num_tokens = 0, 1
    while start < len(token_ids):
        began_seconds = time.thread_time()
        state.consume_tokens(token_ids[start : start + num_tokens])
        start += num_tokens
        if time.thread_time() - began_seconds > CHEAP_SECONDS:
            break
        num_tokens = min(2 * num_tokens, _MAX_TOKENS_AT_ONCE)
    for token_id in token_ids[start:]:
        vocabulary.consume(state, token_id)


def _check(state: LLMatcher) -> None:
    """Raise GrammarProblem if a state is one of an error, which it never leaves.

    Tokens come from masks, so a limit was passed. The library says which in words that hold the grammar or the text.
    """
    if state.is_error():
        raise GrammarProblem(TOO_COMPLEX)
