"""RequestGrammar: the form that a request prescribes for its text, and what the engine's refusal of it means."""

import logging
from typing import NamedTuple

from caravan.server.openai.errors import ApiError, invalid
from caravan.server.text_stream import GrammarRefused

logger = logging.getLogger(__name__)


class RequestGrammar(NamedTuple):
    """A grammar for the engine, and the request's field that it comes from."""

    text: str
    param: str

    def refused(self, error: GrammarRefused) -> ApiError:
        """Return what the client gets when the engine cannot use the grammar; the log gets it, too.

        The engine's words are ours: they hold nothing of the grammar or of the text.
        """
        logger.warning("The engine cannot use a request's grammar: %s.", error)
        return invalid(f"`{self.param}` cannot be used: {error}.", self.param)
