"""CompiledGrammar: one grammar over the model's vocabulary, and the calls into llguidance for its matchers.

A client's grammar may make calls slow, so all slow calls release the GIL. In llguidance 1.9 `validate_tokens` and
`consume_token` do not, and have no limits; so tokens are checked by masks, and consumed only if a mask allows them.
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

CHEAP_SECONDS = 0.001  # of a mask: its tokens are consumed with the GIL held, which is faster
_MAX_TOKENS_AT_ONCE = 64

CANNOT_COMPILE = "it cannot be compiled for this model's vocabulary within the limits"
TOO_COMPLEX = "where the text has come to, it cannot be followed within the limits"

Mask = NDArray[np.uint8]  # [bytes], a bit for each token that may come next, the lowest of a byte first


class GrammarProblem(Exception):
    """A grammar cannot be used. The message is not the library's, which quotes the grammar and the output."""


class Position(NamedTuple):
    """The position of a text in its grammar."""

    state: LLMatcher
    mask: Mask
    seconds: float  # processor time of the mask


class Vocabulary(threading.local):
    """Consumes tokens in one thread without the GIL, which the library releases only for two or more matchers."""

    def __init__(self, tokenizer: LLTokenizer) -> None:
        self.tokenizer = tokenizer
        self._executor = LLExecutor(1)
        self._second = LLMatcher(tokenizer, "", log_level=0)  # in an error state, so that it costs no time

    def consume(self, state: LLMatcher, token_id: int) -> None:
        """Advance a state by a token."""
        self._executor.consume_token_par([(state, token_id), (self._second, token_id)])


class CompiledGrammar:
    """One grammar of one key. Its matchers share a lexer of the library and its lock.

    The lexer grows with every text, and its limits hold for all texts together: past a limit it is in an error state
    for all of them. A separate lexer shows whether one text alone passes a limit.
    """

    def __init__(self, text: str, limits: GrammarLimits, vocabulary: Callable[[], Vocabulary]) -> None:
        self.limits = limits
        self.problem = ""  # ends all sequences with this grammar
        self.is_poisoned = False  # one text caused the problem: later requests compile the grammar again
        self._num_calls = 0  # waiting or running
        self._lock = threading.Lock()  # of _num_calls
        self._lexer = threading.Lock()  # held with the library's lock, which may be awaited with the GIL held
        self._text = text
        self._vocabulary = vocabulary
        self._compiled: LLMatcher | None = None

    @property
    def is_busy(self) -> bool:
        """Whether a call may hold the library's lock."""
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
        """Return the position of a state; raises GrammarProblem."""
        began_seconds = time.thread_time()
        mask = np.frombuffer(state.compute_bitmask(), dtype=np.uint8)  # without the GIL
        _check(state)  # in an error state the mask allows the end alone
        return Position(state, mask, time.thread_time() - began_seconds)

    def next_position(self, state: LLMatcher) -> Position:
        """Return the position of a state, while no other text uses the lexer; raises GrammarProblem."""
        with self._lexer:
            return self.position(state)

    def start(self, token_ids: list[int], *, is_alone: bool = False) -> Position:
        """Return the position after these tokens, compiling the grammar if needed. Raises GrammarProblem.

        The grammar is compiled again if the lexer has passed a limit, and for a matcher with its own lexer (is_alone).
        """
        if self.problem:
            raise GrammarProblem(self.problem)
        vocabulary = self._vocabulary()
        if self._compiled is not None and not is_alone:
            with contextlib.suppress(GrammarProblem):
                return self._position_after(self._compiled, vocabulary, token_ids)
        compiled = LLMatcher(vocabulary.tokenizer, self._text, log_level=0, limits=self.limits.of_parser())
        if compiled.is_error():
            self.problem = CANNOT_COMPILE
            raise GrammarProblem(self.problem)
        if not is_alone:
            self._compiled = compiled
        return self._position_after(compiled, vocabulary, token_ids)

    def _position_after(self, compiled: LLMatcher, vocabulary: Vocabulary, token_ids: list[int]) -> Position:
        state = compiled.deep_copy()
        if token_ids:
            with self._lexer:
                _replay(vocabulary, state, token_ids)
        return self.next_position(state)

    def consume(self, state: LLMatcher, token_id: int, *, is_cheap: bool) -> bool:
        """Consume a token that the last mask allowed; return whether only the end can follow. Raises GrammarProblem.

        Checking the token again costs at most as much as the mask. If the mask was cheap, the GIL is held.
        """
        if is_cheap:
            state.consume_token(token_id)
        else:
            self._vocabulary().consume(state, token_id)
        _check(state)
        return bool(state.is_stopped())


def _replay(vocabulary: Vocabulary, state: LLMatcher, token_ids: list[int]) -> None:
    """Consume the tokens of a sequence with the GIL held, in growing batches as long as they are fast."""
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
    """Raise GrammarProblem if a state is in error, which is permanent.

    Tokens come from masks, so the cause is an exceeded limit. The library's message may quote the grammar or the text.
    """
    if state.is_error():
        raise GrammarProblem(TOO_COMPLEX)
