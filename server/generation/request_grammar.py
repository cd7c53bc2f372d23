"""RequestGrammar: the grammar that constrains a request's text."""

from typing import NamedTuple


class RequestGrammar(NamedTuple):
    """A grammar for the engine, and the request field that specifies it."""

    text: str
    param: str
