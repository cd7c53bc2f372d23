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
        self._mask: Callable[[], bytes] | None = None  # waits for it

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

    @property
    def is_mask_missing(self) -> bool:
        """Whether nobody computes which tokens may come next, or has done so."""
        return self._mask is None

    def compute_mask(self) -> bytes:
        """Return which tokens may come next, as `mask` does, at the price of finding out."""
        return self._state.compute_bitmask()

    def expect_mask(self, masks: "Future[list[bytes]]", index: int) -> None:
        """Take the mask from these when it is wanted."""
        self._mask = lambda: masks.result()[index]

    def mask(self) -> bytes:
        """Return which tokens may come next, a bit for each token, the lowest of a byte first; begin before."""
        assert self._mask is not None
        return self._mask()

    @property
    def _state(self) -> LLMatcher:
        return self._compiled.result()


class Grammars:
    """Compiles grammars for one vocabulary, each once as long as it is among the last used."""

    def __init__(self, make_tokenizer: Callable[[], LLTokenizer]) -> None:
        """`make_tokenizer` is called with the first grammar."""
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="grammar")
        self._make_tokenizer = make_tokenizer
        self._tokenizer: LLTokenizer | None = None
        self._compiled: OrderedDict[str, LLMatcher] = OrderedDict()

    def matcher(self, grammar: str, output_token_ids: list[int]) -> Matcher:
        """Return the matcher of a sequence that has this output already; returns before the grammar is compiled."""
        return Matcher(self._executor.submit(self._start, grammar, output_token_ids))

    def start_masks(self, matchers: list[Matcher]) -> None:
        """Begin to compute which tokens may come next, in one go for all sequences of which that is not known."""
        wanted = [matcher for matcher in matchers if matcher.is_mask_missing]
        if not wanted:
            return
        masks = self._executor.submit(lambda: [matcher.compute_mask() for matcher in wanted])
        for index, matcher in enumerate(wanted):
            matcher.expect_mask(masks, index)

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
