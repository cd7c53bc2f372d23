"""Ctrl-C: it ends a command that has just started at once, and raises KeyboardInterrupt where there is work to end."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

INTERRUPTED = 130  # exit status of a command that Ctrl-C has ended


def end_at_interrupt() -> None:
    """Let Ctrl-C end the process without output, as there is nothing to end yet; where SIGINT is ignored it remains so.

    An exception could come up inside an import, where Python prints it and goes on.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


def raise_at_interrupt() -> None:
    """Let Ctrl-C raise KeyboardInterrupt again."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def interruptible() -> Iterator[None]:
    """Let Ctrl-C raise KeyboardInterrupt inside the block, and do what it did before after it."""
    before = signal.getsignal(signal.SIGINT)
    raise_at_interrupt()
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _end(number: int, frame: FrameType | None) -> None:  # noqa: ARG001  # a handler's signature
    os._exit(INTERRUPTED)
