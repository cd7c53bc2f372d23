"""SIGHUP before a server can read its API keys again: it is remembered, so that it does not end the process.

This is imported before anything else is, so it imports little.
"""

import os
import signal
from functools import partial
from types import FrameType


def hold_hangups() -> None:
    """From now on remember SIGHUP; if the terminal of this process is closed, it still ends the process.

    Where the signal is ignored, as with nohup, it remains so.
    """
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
        signal.signal(signal.SIGHUP, partial(_remember, had_terminal=has_terminal(), was_received=False))


def release_hangups() -> None:
    """Give SIGHUP its usual meaning again: this server has no file of keys."""
    if _is_ours(signal.getsignal(signal.SIGHUP)):
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


def was_remembered(handler: object) -> bool:
    """Return whether `handler`, that of SIGHUP until now, has received it."""
    return isinstance(handler, partial) and _is_ours(handler) and bool(handler.keywords["was_received"])


def has_terminal() -> bool:
    """Return whether this process has a controlling terminal that is open."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return False
    return True


def _is_ours(handler: object) -> bool:
    return isinstance(handler, partial) and handler.func is _remember


def _remember(number: int, frame: FrameType | None, *, had_terminal: bool, was_received: bool) -> None:  # noqa: ARG001
    if had_terminal and not has_terminal():
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)
    signal.signal(number, partial(_remember, had_terminal=had_terminal, was_received=True))
