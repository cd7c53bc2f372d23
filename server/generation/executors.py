"""Executors: the threads in which a server renders templates and tokenizes texts, apart from each other."""

from dataclasses import dataclass, field

from caravan.server.sandbox.fair_executor import FairExecutor

_TOKENIZING_NICENESS = 10  # it keeps all processors busy; the event loop and the engine go first
_NUM_THREADS = 3  # of each kind; one key gets two of them at a time


def _executor(what: str, niceness: int = 0) -> FairExecutor:
    """Return an executor whose queue is as long as that of the requests inside the server, which has a limit."""
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
    """Threads for work that takes time in proportion to what a request sends; the event loop goes on meanwhile.

    Each kind has threads of its own, so that texts that take long to tokenize hold up no template, and nothing here
    holds up asyncio's default executor. Grammar checks have theirs in GrammarCheck.
    """

    templates: FairExecutor = field(default_factory=lambda: _executor("chat templates"))
    tokenizing: FairExecutor = field(default_factory=lambda: _executor("texts to tokenize", _TOKENIZING_NICENESS))

    def close(self) -> None:
        """Begin no more work."""
        self.templates.close()
        self.tokenizing.close()
