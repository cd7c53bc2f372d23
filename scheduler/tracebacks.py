"""Tracebacks for the log, without messages of libraries, which may quote a client's text."""

import logging
import traceback
from types import TracebackType

ExceptionInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]

_OUR_PACKAGE = "caravan"


def traceback_text(error: BaseException) -> str:
    """Return the traceback of an exception and of its causes, the first cause first.

    For an exception of a library it has the class only: the message may hold a schema, a prompt or an answer.
    """
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    parts = [] if cause is None else [traceback_text(cause)]
    if isinstance(error, BaseExceptionGroup):
        parts += [traceback_text(one) for one in error.exceptions]
    frames = "".join(traceback.format_tb(error.__traceback__))
    return "\n".join([*parts, f"Traceback (most recent call last):\n{frames}{described(error)}"])


def described(error: BaseException) -> str:
    """Return the class of an exception, and its message if the class is defined in this package."""
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    return f"{name}: {error}" if kind.__module__.partition(".")[0] == _OUR_PACKAGE else name


class TracebackFormatter(logging.Formatter):
    """Formats log records with these tracebacks."""

    def formatException(self, ei: ExceptionInfo) -> str:  # a method of the library
        """See logging.Formatter."""
        return traceback_text(ei[1]) if ei[1] is not None else ""
