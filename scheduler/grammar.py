"""Grammars: which tokens may come next in the output of requests with a grammar.

The masks come from llguidance, which walks the vocabulary as a trie along the grammar's states. A client's grammar may
make that slow, so each call runs in a thread with a time limit, and a sequence whose mask is late skips steps.
"""

import concurrent.futures
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial

from llguidance import LLTokenizer

from caravan.scheduler.compiled_grammar import (
    CHEAP_SECONDS,
    CompiledGrammar,
    GrammarProblem,
    Mask,
    Position,
    Vocabulary,
)
from caravan.scheduler.grammar_limits import GrammarLimits
from caravan.scheduler.grammar_threads import Call, CallTooSlow, GrammarThreads

NOTHING_LEFT = "`logit_bias` excludes every token that it allows"

_NUM_KEPT = 64  # grammars that are kept compiled
_NUM_START_THREADS = 2  # a key has at most one of them


class Matcher:
    """The position of one sequence in its grammar. Only the thread of the step loop uses it."""

    def __init__(
        self, grammar: CompiledGrammar, key: str, token_ids: list[int], starts: GrammarThreads, masks: GrammarThreads
    ) -> None:
        self._grammar = grammar
        self._key = key
        self._threads = masks
        self._starts = starts
        self._token_ids = token_ids  # of the output so far
        self._is_alone = False  # no other matcher uses its lexer
        self._problem = ""
        self._position: Position | None = None
        self._offered: int | None = None  # the next token, until it is accepted
        self._is_complete = False
        self.is_late = False  # a step has waited for the call, so other steps do not
        self._call: Call[Position | bool] | None = None  # a bool: only the end can follow
        self._start()

    @property
    def is_ready(self) -> bool:
        """Whether no call is running: there is a mask, an offered token was consumed, or there is a problem."""
        self._collect()
        return self._call is None

    @property
    def problem(self) -> str:
        """Why the sequence cannot continue, empty if it can; safe for the client and the log."""
        self._collect()
        return self._problem or self._grammar.problem

    @property
    def mask(self) -> Mask:
        """Which tokens may come next, when the matcher is ready."""
        assert self._position is not None, "it is ready and has no problem"
        return self._position.mask

    @property
    def is_complete(self) -> bool:
        """Whether only the end can follow the last offered token."""
        return self._is_complete

    @property
    def has_taken(self) -> bool:
        """Whether an offered token was consumed and can be accepted."""
        return self._offered is not None and self._call is None and not self._problem

    def allows(self, token_id: int) -> bool:
        """Return whether a token may come next."""
        return bool(self.mask[token_id // 8] >> token_id % 8 & 1)

    def wait(self, timeout_seconds: float) -> None:
        """Wait until it is ready, timeout_seconds at most."""
        if self._call is not None and self._call.wait(timeout_seconds):
            self._collect()

    def offer(self, token_id: int) -> None:
        """Start to consume the next token; `is_ready` says when that is done. A repeated step offers it again."""
        if self._offered is not None:
            assert self._offered == token_id, "a repeated step samples the same token"
            return
        assert self._position is not None
        self._offered = token_id
        is_cheap = self._position.seconds < CHEAP_SECONDS and not self._grammar.is_busy
        consume = partial(self._grammar.consume, self._position.state, token_id, is_cheap=is_cheap)
        if not is_cheap:
            self._submit(self._threads, consume, self._grammar.limits.mask_seconds)
            return
        try:
            self._is_complete = consume()
        except BaseException as error:  # as in _collect
            self._meet(error)

    def accept(self, token_id: int) -> None:
        """Continue after the offered token: start to compute the mask of the next one."""
        assert self._offered == token_id
        assert self.is_ready
        assert self._position is not None
        self._offered = None
        self._token_ids.append(token_id)
        if not self.problem and not self._is_complete:
            position = partial(self._grammar.next_position, self._position.state)
            self._submit(self._threads, position, self._grammar.limits.mask_seconds)

    def fail(self, problem: str) -> None:
        """Record that the sequence cannot continue."""
        self._problem = problem

    def close(self) -> None:
        """Cancel a call that has not begun; the sequence has ended."""
        if self._call is not None:
            self._call.cancel()
            self._call = None

    def _start(self) -> None:
        """Start to compute the position after the output so far."""
        limits = self._grammar.limits
        # Each of these tokens had the time of a mask; a replay must not fail where the first run did not.
        limit_seconds = limits.start_seconds + limits.mask_seconds * len(self._token_ids)
        start = partial(self._grammar.start, [*self._token_ids], is_alone=self._is_alone)
        self._submit(self._starts, start, limit_seconds)

    def _meet(self, problem: BaseException) -> None:
        """Record a problem. If other texts may have caused it, start again with a separate lexer instead.

        After a new start an offered token must be offered again.
        """
        if not isinstance(problem, GrammarProblem):  # its text may hold the grammar
            self._problem = f"the grammar library failed ({type(problem).__name__})"
            return
        if self._is_alone or self._position is None or self._grammar.problem:
            self._problem = str(problem)
            return
        self._is_alone = True
        self._offered = None
        self._start()

    def _submit(self, threads: GrammarThreads, function: Callable[[], Position | bool], limit_seconds: float) -> None:
        self.is_late = False
        self._grammar.begin_call()
        self._call = threads.submit(self._key, function, limit_seconds, self._grammar.end_call)

    def _collect(self) -> None:
        """Apply the result of the call, if it is done."""
        if self._call is None or not self._call.is_done:
            return
        call, self._call = self._call, None
        try:
            result = call.result()
        except CallTooSlow:
            limit = f"{call.limit_seconds:g} s of processor time"
            self._problem = self._grammar.problem = f"over this model's vocabulary it takes more than {limit}"
            self._grammar.is_poisoned = self._position is not None
        except BaseException as error:  # a panic in the library is not an Exception
            self._meet(error)
        else:
            if isinstance(result, Position):
                self._position = result
            else:
                self._is_complete = result


class Grammars:
    """Compiles grammars for one vocabulary; those used last are kept, by key."""

    def __init__(
        self,
        make_tokenizer: Callable[[], LLTokenizer],
        num_threads: int,
        limits: GrammarLimits | None = None,
    ) -> None:
        """`make_tokenizer` is called with the first grammar; num_threads threads compute masks."""
        self.limits = limits or GrammarLimits()
        self._starts = GrammarThreads(_NUM_START_THREADS, max_per_key=1, prepare=self._await_vocabulary)
        self._masks = GrammarThreads(num_threads, max_per_key=max(num_threads - 1, 1))
        self._make_tokenizer = make_tokenizer
        self._vocabulary: Future[Vocabulary] | None = None
        self._kept: OrderedDict[tuple[str, str], CompiledGrammar] = OrderedDict()  # by key and text

    def matcher(self, text: str, output_token_ids: Sequence[int], key: str = "") -> Matcher:
        """Return the matcher of a sequence with this output so far. It returns before the grammar is compiled."""
        if self._vocabulary is None:  # not part of the grammar's time
            self._vocabulary = Future()
            threading.Thread(target=self._make_vocabulary, args=(self._vocabulary,), daemon=True).start()
        grammar = self._kept.get((key, text))
        if grammar is None or grammar.is_poisoned:
            grammar = self._kept[key, text] = CompiledGrammar(text, self.limits, self._vocabulary.result)
        self._kept.move_to_end((key, text))
        if len(self._kept) > _NUM_KEPT:
            self._kept.popitem(last=False)
        return Matcher(grammar, key, [*output_token_ids], self._starts, self._masks)

    def end_slow_calls(self) -> None:
        """Give up calls that take too long; call it in every step."""
        self._starts.end_slow_calls()
        self._masks.end_slow_calls()

    def _await_vocabulary(self) -> None:
        assert self._vocabulary is not None, "no thread starts before the first grammar comes"
        concurrent.futures.wait([self._vocabulary])

    def _make_vocabulary(self, made: "Future[Vocabulary]") -> None:
        try:
            made.set_result(Vocabulary(self._make_tokenizer()))
        except Exception as error:
            made.set_exception(error)


def wait_for(matchers: Sequence[Matcher], timeout_seconds: float) -> None:
    """Wait until all are ready, timeout_seconds at most in all. Those that are not ready then are late."""
    end_seconds = time.monotonic() + timeout_seconds
    for matcher in matchers:
        if not matcher.is_ready:
            matcher.wait(max(end_seconds - time.monotonic(), 0.0))
            matcher.is_late = not matcher.is_ready
