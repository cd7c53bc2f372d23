"""Whether a grammar allows a text, over a vocabulary of bytes."""

from functools import cache

from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from caravan.server.sandbox.grammar_worker import Bytes


@cache
def _start(grammar: str) -> LLMatcher:
    return LLMatcher(LLTokenizer(TokenizerWrapper(Bytes()), slices=[]), grammar, log_level=0)


def accepts_text(grammar: str, text: str) -> bool:
    """Return whether a text, from its beginning to its end, is one of the grammar, which must be valid."""
    assert not _start(grammar).is_error(), _start(grammar).get_error()
    state, tokens = _start(grammar).deep_copy(), list(text.encode())
    return state.try_consume_tokens(tokens) == len(tokens) and state.is_accepting()
