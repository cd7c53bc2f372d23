"""RequestGrammar: the form that a request prescribes for its text."""

from typing import NamedTuple


class RequestGrammar(NamedTuple):
    """A grammar for the engine, and the request's field that it comes from."""

    text: str
    param: str
