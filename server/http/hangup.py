"""SIGHUP: read the API keys again, or end the server if its terminal was closed."""

import asyncio
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from caravan.server.http.early_hangup import has_terminal, was_remembered


@contextmanager
def on_hangup(reload: Callable[[], None], end: Callable[[], None]) -> Iterator[None]:
    """Call `reload` at each SIGHUP inside the block, which needs a running event loop in the main thread.

    One that came earlier, after `hold_hangups`, counts as well. A terminal that is closed sends SIGHUP, too: then `end`
    is called, unless SIGHUP was ignored, as with nohup.
    """
    before = signal.getsignal(signal.SIGHUP)
    had_terminal = before is not signal.SIG_IGN and has_terminal()

    def handle() -> None:
        if had_terminal and not has_terminal():
            end()
        else:
            reload()

    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGHUP, handle)
    if was_remembered(before):
        handle()
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGHUP)
        signal.signal(signal.SIGHUP, before)
