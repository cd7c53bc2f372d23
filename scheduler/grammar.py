"""Grammars: which tokens may come next where a request prescribes the form of its text.

The masks come from llguidance, which walks the vocabulary as a trie along the grammar's states. A grammar is compiled
in a thread of its own while the model runs; masks are computed by all cores when the sampler wants them.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from llguidance import LLExecutor, LLMatcher, LLTokenizer
from llguidance.numpy import fill_next_token_bitmask_par, get_bitmask_shape
from numpy.typing import NDArray

_NUM_KEPT = 128  # grammars that are kept compiled


class Matcher:
    """How far one sequence has come in its grammar."""

    def __init__(self, compiled: "Future[LLMatcher]") -> None:
        self._compiled = compiled

    @property
    def is_ready(self) -> bool:
        """Whether the grammar is compiled, or cannot be."""
        return self._compiled.done()

    @property
    def error(self) -> str:
        """What went wrong, if something did; waits until the grammar is compiled."""
        try:
            return self.state.get_error()
        except Exception as error:
            return f"The grammar cannot be compiled: {error}"

    @property
    def is_complete(self) -> bool:
        """Whether nothing can follow but the end."""
        return self.state.is_stopped()

    def allows(self, token_id: int) -> bool:
        """Return whether a token may come next."""
        return self.state.validate_tokens([token_id]) == 1

    def accept(self, token_id: int) -> bool:
        """Take the sequence's next token; False if the grammar does not allow it."""
        return self.state.consume_token(token_id)

    @property
    def state(self) -> LLMatcher:
        """What the library knows of it; waits until the grammar is compiled."""
        return self._compiled.result()


class Grammars:
    """Compiles grammars for one vocabulary, each once as long as it is among the last used."""

    def __init__(self, make_tokenizer: Callable[[], LLTokenizer], num_threads: int) -> None:
        """`make_tokenizer` is called with the first grammar; so many threads compute masks."""
        self._cores = LLExecutor(num_threads)
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="grammar")
        self._make_tokenizer = make_tokenizer
        self._tokenizer: LLTokenizer | None = None
        self._compiled: OrderedDict[str, LLMatcher] = OrderedDict()

    def matcher(self, grammar: str, output_token_ids: list[int]) -> Matcher:
        """Return the matcher of a sequence that has this output already; returns before the grammar is compiled."""
        return Matcher(self._executor.submit(self._start, grammar, output_token_ids))

    def masks(self, matchers: Sequence[Matcher]) -> NDArray[np.uint8]:
        """Return which tokens each sequence may have next, [N, bytes]: a bit for each, the lowest of a byte first.

        Takes at least one matcher, each without an error.
        """
        assert self._tokenizer is not None, "it was made for the first of these matchers"
        masks = np.zeros(
            get_bitmask_shape(len(matchers), self._tokenizer.vocab_size), dtype=np.int32
        )  # nothing allowed
        states = [(matcher.state, index) for index, matcher in enumerate(matchers)]
        fill_next_token_bitmask_par(self._cores, states, masks)
        return masks.view(np.uint8)

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
