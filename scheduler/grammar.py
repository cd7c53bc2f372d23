"""Grammars: which tokens may come next where a request prescribes the form of its text.

The masks come from llguidance, which walks the vocabulary as a trie along the grammar's states. How long that takes
depends on a stranger's grammar, so the engine waits for no call: each runs in a thread with a limit, and a sequence
whose mask is late sits steps out. Every call that may take long must let go of Python's lock. In llguidance 1.9
`validate_tokens` and `consume_token` do not, and bound nothing, so tokens are judged by masks alone.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
from llguidance import LLExecutor, LLMatcher, LLParserLimits, LLTokenizer
from numpy.typing import NDArray

from scheduler.grammar_threads import Call, CallTooSlow, GrammarThreads

CHEAP_SECONDS = 0.001  # of a mask: then a token of it is taken at once, in the thread of the step
_NUM_KEPT = 64  # grammars that are kept compiled
_MAX_TOKENS_AT_ONCE = 64
_NUM_START_THREADS = 2  # a key has at most one of them

CANNOT_COMPILE = "it cannot be compiled for this model's vocabulary within the limits"
TOO_COMPLEX = "where the text has come to, it allows more alternatives than can be followed"
NOTHING_LEFT = "`logit_bias` excludes every token that it allows"

Mask = NDArray[np.uint8]  # [bytes], a bit for each token that may come next, the lowest of a byte first


@dataclass(frozen=True, kw_only=True)
class GrammarLimits:
    """What a grammar may cost. The library's own limits count work; seconds are of processor time but for one."""

    wait_seconds: float = 0.05  # of a clock on the wall: a step waits so long for all its masks
    start_seconds: float = 1.0  # to compile it and to compute its first mask
    mask_seconds: float = 0.25  # to compute any other mask
    max_items_in_row: int = 2_000  # alternatives at one position of a text, after a token
    max_items_in_mask: int = 50_000  # in all positions that one mask looks at
    max_lexer_states: int = 50_000  # 1 to 2 KB each, kept with the grammar
    lexer_fuel: int = 200_000  # of one mask
    max_symbols: int = 200_000  # of the grammar; 8 for each optional property of a schema

    def of_parser(self) -> LLParserLimits:
        """Return the limits in the library's form. Its errors would hold the grammar and the text: not verbose."""
        return LLParserLimits(
            max_items_in_row=self.max_items_in_row,
            step_max_items=self.max_items_in_mask,
            max_lexer_states=self.max_lexer_states,
            step_lexer_fuel=self.lexer_fuel,
            max_grammar_size=self.max_symbols,
            verbose_errors=False,
        )


class GrammarProblem(Exception):
    """Why a grammar cannot be used, in words of ours: the library's hold the grammar and the text."""


class _Position(NamedTuple):
    """Where a text has come to in its grammar."""

    state: LLMatcher
    mask: Mask
    seconds: float  # of processor time that the mask took


class _Vocabulary(threading.local):
    """What one thread needs to consume tokens without Python's lock: the library lets go of it for two matchers."""

    def __init__(self, tokenizer: LLTokenizer) -> None:
        self.tokenizer = tokenizer
        self._executor = LLExecutor(1)
        self._second = LLMatcher(tokenizer, "", log_level=0)  # in an error state, so that it costs nothing

    def consume(self, state: LLMatcher, token_id: int) -> None:
        """Take a token into a state."""
        self._executor.consume_token_par([(state, token_id), (self._second, token_id)])


class _Grammar:
    """One grammar of one key. Its matchers share the library's lexer, and a lock with it."""

    def __init__(self, text: str, limits: GrammarLimits, vocabulary: Callable[[], _Vocabulary]) -> None:
        self.limits = limits
        self.problem = ""  # ends everything that has this grammar
        self._num_calls = 0  # that are waiting or running
        self._lock = threading.Lock()  # of this number
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

    def start(self, token_ids: list[int]) -> _Position:
        """Return the position behind these tokens; compiles the grammar if it was not yet. Raises GrammarProblem."""
        if self.problem:
            raise GrammarProblem(self.problem)
        vocabulary = self._vocabulary()
        if self._compiled is None:
            compiled = LLMatcher(vocabulary.tokenizer, self._text, log_level=0, limits=self.limits.of_parser())
            if compiled.is_error():
                self.problem = CANNOT_COMPILE
                raise GrammarProblem(self.problem)
            self._compiled = compiled
        state = self._compiled.deep_copy()
        _replay(vocabulary, state, token_ids)
        return _position(state)

    def consume_unlocked(self, state: LLMatcher, token_id: int) -> bool:
        """Take a token into a state, without Python's lock; return whether nothing but the end can follow."""
        self._vocabulary().consume(state, token_id)
        return _is_complete(state)


class Matcher:
    """How far one sequence has come in its grammar. Used by the thread of the step loop alone."""

    def __init__(
        self, grammar: _Grammar, key: str, token_ids: list[int], starts: GrammarThreads, masks: GrammarThreads
    ) -> None:
        self._grammar = grammar
        self._key = key
        self._threads = masks
        self._problem = ""
        self._position: _Position | None = None
        self._offered: int | None = None  # the next token, until it is accepted
        self._is_complete = False
        self._call: Call[_Position | bool] | None = None  # a bool: nothing can follow but the end
        self._submit(starts, partial(grammar.start, token_ids), grammar.limits.start_seconds)

    @property
    def is_ready(self) -> bool:
        """Whether nothing has to be waited for: the mask is there, a token offered was taken, or there is a problem."""
        self._collect()
        return self._call is None

    @property
    def problem(self) -> str:
        """Why the sequence cannot go on, empty if it can; in words that are fit for the client and the log."""
        self._collect()
        return self._problem or self._grammar.problem

    @property
    def mask(self) -> Mask:
        """Which tokens may come next, once that is known."""
        assert self._position is not None, "it is ready and has no problem"
        return self._position.mask

    @property
    def is_complete(self) -> bool:
        """Whether nothing can follow the last token that was offered but the end."""
        return self._is_complete

    def allows(self, token_id: int) -> bool:
        """Return whether a token may come next."""
        return bool(self.mask[token_id // 8] >> token_id % 8 & 1)

    def wait(self, timeout_seconds: float) -> None:
        """Wait until it is ready, but no longer than that."""
        if self._call is not None and self._call.wait(timeout_seconds):
            self._collect()

    def offer(self, token_id: int) -> None:
        """Take the next token as soon as possible; `is_ready` says when. It may be offered again if a step is."""
        if self._offered is not None:
            assert self._offered == token_id, "a step that is run again draws the same token"
            return
        assert self._position is not None
        self._offered = token_id
        state = self._position.state
        if self._position.seconds < CHEAP_SECONDS and not self._grammar.is_busy:
            self._take(state, token_id)
        else:
            self._submit(
                self._threads,
                partial(self._grammar.consume_unlocked, state, token_id),
                self._grammar.limits.mask_seconds,
            )

    def accept(self, token_id: int) -> None:
        """Go on behind the token that was offered and taken: begin to compute which may follow it."""
        assert self._offered == token_id
        assert self.is_ready
        assert self._position is not None
        self._offered = None
        if not self.problem and not self._is_complete:
            self._submit(self._threads, partial(_position, self._position.state), self._grammar.limits.mask_seconds)

    def fail(self, problem: str) -> None:
        """Say that the sequence cannot go on."""
        self._problem = problem

    def close(self) -> None:
        """Drop what has not begun; the sequence has ended."""
        if self._call is not None:
            self._call.cancel()
            self._call = None

    def _submit(self, threads: GrammarThreads, function: Callable[[], _Position | bool], limit_seconds: float) -> None:
        self._grammar.begin_call()
        self._call = threads.submit(self._key, function, limit_seconds, self._grammar.end_call)

    def _collect(self) -> None:
        """Take the result of the call, if it is there."""
        if self._call is None or not self._call.is_done:
            return
        call, self._call = self._call, None
        try:
            result = call.result()
        except GrammarProblem as problem:
            self._problem = str(problem)
        except CallTooSlow:
            limit = f"{call.limit_seconds:g} s of processor time"
            self._problem = self._grammar.problem = f"over this model's vocabulary it takes more than {limit}"
        except BaseException as error:  # a panic in the library is no Exception; its text may hold the grammar
            self._problem = f"the grammar library failed ({type(error).__name__})"
        else:
            if isinstance(result, _Position):
                self._position = result
            else:
                self._is_complete = result

    def _take(self, state: LLMatcher, token_id: int) -> None:
        """Take a token that a cheap mask allowed: to judge it again costs no more than the mask did."""
        state.consume_token(token_id)
        try:
            self._is_complete = _is_complete(state)
        except GrammarProblem as problem:
            self._problem = str(problem)


class Grammars:
    """Compiles grammars for one vocabulary, each once for a key as long as it is among the last used."""

    def __init__(
        self,
        make_tokenizer: Callable[[], LLTokenizer],
        num_threads: int,
        limits: GrammarLimits | None = None,
    ) -> None:
        """`make_tokenizer` is called with the first grammar; so many threads compute masks."""
        self.limits = limits or GrammarLimits()
        self._starts = GrammarThreads(_NUM_START_THREADS, max_per_key=1)
        self._masks = GrammarThreads(num_threads, max_per_key=max(num_threads - 1, 1))
        self._make_tokenizer = make_tokenizer
        self._vocabulary: Future[_Vocabulary] | None = None
        self._kept: OrderedDict[tuple[str, str], _Grammar] = OrderedDict()  # by key and text

    def matcher(self, text: str, output_token_ids: Sequence[int], key: str = "") -> Matcher:
        """Return the matcher of a sequence that has this output already; returns before the grammar is compiled."""
        if self._vocabulary is None:  # its time is not the grammar's
            self._vocabulary = Future()
            threading.Thread(target=self._make_vocabulary, args=(self._vocabulary,), daemon=True).start()
        grammar = self._kept.setdefault((key, text), _Grammar(text, self.limits, self._vocabulary.result))
        self._kept.move_to_end((key, text))
        if len(self._kept) > _NUM_KEPT:
            self._kept.popitem(last=False)
        return Matcher(grammar, key, [*output_token_ids], self._starts, self._masks)

    def end_slow_calls(self) -> None:
        """Give up what takes too long; to be called at every step."""
        self._starts.end_slow_calls()
        self._masks.end_slow_calls()

    def _make_vocabulary(self, made: "Future[_Vocabulary]") -> None:
        try:
            made.set_result(_Vocabulary(self._make_tokenizer()))
        except Exception as error:
            made.set_exception(error)


def wait_for(matchers: Sequence[Matcher], timeout_seconds: float) -> None:
    """Wait until all are ready, but no longer than that together."""
    end_seconds = time.monotonic() + timeout_seconds
    for matcher in matchers:
        if not matcher.is_ready:
            matcher.wait(max(end_seconds - time.monotonic(), 0.0))


def _replay(vocabulary: _Vocabulary, state: LLMatcher, token_ids: list[int]) -> None:
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


def _position(state: LLMatcher) -> _Position:
    """Return the position of a state; raises GrammarProblem."""
    began_seconds = time.thread_time()
    mask = np.frombuffer(state.compute_bitmask(), dtype=np.uint8)  # without Python's lock
    _check(state)  # in an error state the mask allows the end alone
    return _Position(state, mask, time.thread_time() - began_seconds)


def _is_complete(state: LLMatcher) -> bool:
    _check(state)
    return bool(state.is_stopped())


def _check(state: LLMatcher) -> None:
    """Raise GrammarProblem if a state is one of an error, which it never leaves.

    Tokens come from masks, so a limit was passed. The library says which in words that hold the grammar or the text.
    """
    if state.is_error():
        raise GrammarProblem(TOO_COMPLEX)
