"""Executors: separate thread pools for chat templates and for tokenizing."""

from dataclasses import dataclass, field

from caravan.server.sandbox.fair_executor import FairExecutor

_TOKENIZING_NICENESS = 10  # it uses all processors; the event loop and the engine have priority
_NUM_THREADS = 3  # per pool; one key uses at most two


def _executor(what: str, niceness: int = 0) -> FairExecutor:
    """Return an executor without a limit of its own: the number of concurrent requests limits its queue."""
    return FairExecutor(
        what,
        num_threads=_NUM_THREADS,
        max_running_per_key=_NUM_THREADS - 1,
        max_waiting_per_key=None,
        seconds_per_call=1.0,
        niceness=niceness,
    )


@dataclass(frozen=True)
class Executors:
    """Thread pools for work that takes time in proportion to a request's input, outside the event loop.

    The pools are separate, so long texts do not delay templates, and nothing here blocks asyncio's default executor.
    GrammarCheck has its own threads.
    """

    templates: FairExecutor = field(default_factory=lambda: _executor("chat templates"))
    tokenizing: FairExecutor = field(default_factory=lambda: _executor("texts to tokenize", _TOKENIZING_NICENESS))

    def close(self) -> None:
        """Start no more calls."""
        self.templates.close()
        self.tokenizing.close()
