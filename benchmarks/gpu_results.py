"""Results of measurements, of which some may fail."""

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

MOST_CHARACTERS = 300  # of an error


def guarded(name: str, results: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield results; an exception among them is the last one, so that other measurements can follow."""
    text = ""
    try:
        yield from results
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
    if text:  # outside of the handler, where the traceback would hold tensors
        yield {"failed": name, "error": text[:MOST_CHARACTERS], "is_right": False}


@contextmanager
def no_logged_errors() -> Iterator[None]:
    """Raise RuntimeError if errors are logged: an engine that runs a failed step again is no fair measurement."""
    messages: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            reason = "" if record.exc_info is None else f" {record.exc_info[1]!r}"
            messages.append(f"{record.getMessage()}{reason}")

    handler, logger = Collector(logging.ERROR), logging.getLogger("caravan")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
    if messages:
        raise RuntimeError(f"{len(messages)} errors were logged, first: {messages[0]}")
