"""GrammarCheck: whether a grammar that a request brings can be used, and within what time and memory."""

import threading
from collections import OrderedDict

from server import grammar_worker
from server.worker_process import WorkerProcess

MAX_CHARACTERS = 256 * 1024  # of a grammar
_MEMORY_LIMIT_BYTES = 2**30  # address space of the worker
_NUM_REMEMBERED = 256


class GrammarCheck:
    """Compiles grammars in a process of its own before the engine gets them, and remembers what it found.

    The engine compiles a grammar once more, for its own vocabulary, and would be held up by one that takes for ever.
    The process is started with the first grammar.
    """

    def __init__(self, *, time_limit_seconds: float = 2.0) -> None:
        self._time_limit_seconds = time_limit_seconds
        self._lock = threading.Lock()
        self._worker: WorkerProcess | None = None
        self._found: OrderedDict[str, str] = OrderedDict()

    def problem(self, grammar: str) -> str:
        """Return in a few words why the grammar cannot be used, or nothing; blocks for at most the time limit."""
        if len(grammar) > MAX_CHARACTERS:
            return f"it has {len(grammar)} characters, more than {MAX_CHARACTERS}"
        with self._lock:
            if grammar not in self._found:
                self._found[grammar] = self._ask(grammar)
                if len(self._found) > _NUM_REMEMBERED:
                    self._found.popitem(last=False)
            self._found.move_to_end(grammar)
            return self._found[grammar]

    def close(self) -> None:
        """End the worker, if there is one."""
        with self._lock:
            if self._worker is not None:
                self._worker.close()
                self._worker = None

    def _ask(self, grammar: str) -> str:
        worker = self._worker or WorkerProcess(grammar_worker.__file__, self._time_limit_seconds, _MEMORY_LIMIT_BYTES)
        answer = worker.ask({"grammar": grammar})
        if answer is None:
            worker.close()
            self._worker = None
            return (
                f"it takes more than {self._time_limit_seconds:g} seconds or {_MEMORY_LIMIT_BYTES >> 20} MiB to compile"
            )
        self._worker = worker
        return " ".join(answer.get("failed", "").split())
