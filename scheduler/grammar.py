"""Grammars: which tokens may come next where a request prescribes the form of its text.

The masks come from llguidance, which walks the vocabulary as a trie along the grammar's states. A grammar is compiled,
and masks are computed, in a thread of its own, while the model runs.
"""

from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from llguidance import LLMatcher, LLTokenizer

_NUM_KEPT = 128  # grammars that are kept compiled


class Matcher:
    """How far one sequence has come in its grammar."""

    def __init__(self, compiled: "Future[LLMatcher]") -> None:
        self._compiled = compiled
        self._mask: Future[bytes] | None = None

    @property
    def is_ready(self) -> bool:
        """Whether the grammar is compiled, or cannot be."""
        return self._compiled.done()

    @property
    def error(self) -> str:
        """What went wrong, if something did; waits until the grammar is compiled."""
        try:
            return self._state.get_error()
        except Exception as error:
            return f"The grammar cannot be compiled: {error}"

    @property
    def is_complete(self) -> bool:
        """Whether nothing can follow but the end."""
        return self._state.is_stopped()

    def accept(self, token_id: int) -> bool:
        """Take the sequence's next token; False if the grammar does not allow it."""
        self._mask = None
        return self._state.consume_token(token_id)

    def start_mask(self, executor: ThreadPoolExecutor) -> None:
        """Begin to compute which tokens may come next, if that is not known."""
        if self._mask is None:
            self._mask = executor.submit(self._state.compute_bitmask)

    def mask(self) -> bytes:
        """Return which tokens may come next, a bit for each token, the lowest of a byte first; begin before."""
        assert self._mask is not None
        return self._mask.result()

    @property
    def _state(self) -> LLMatcher:
        return self._compiled.result()


class Grammars:
    """Compiles grammars for one vocabulary, each once as long as it is among the last used."""

    def __init__(self, make_tokenizer: Callable[[], LLTokenizer]) -> None:
        """`make_tokenizer` is called with the first grammar."""
        self.executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="grammar")
        self._make_tokenizer = make_tokenizer
        self._tokenizer: LLTokenizer | None = None
        self._compiled: OrderedDict[str, LLMatcher] = OrderedDict()

    def matcher(self, grammar: str, output_token_ids: list[int]) -> Matcher:
        """Return the matcher of a sequence that has this output already; returns before the grammar is compiled."""
        return Matcher(self.executor.submit(self._start, grammar, output_token_ids))

    def _start(self, grammar: str, output_token_ids: list[int]) -> LLMatcher:
        """Only the one thread of the executor comes here."""
        if self._tokenizer is None:
            self._tokenizer = self._make_tokenizer()
        if grammar not in self._compiled:
            self._compiled[grammar] = LLMatcher(self._tokenizer, grammar, log_level=0)
            if len(self._compiled) > _NUM_KEPT:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(grammar)
        matcher = self._compiled[grammar].deep_copy()
        if not matcher.is_error():
            matcher.consume_tokens(output_token_ids)
        return matcher
