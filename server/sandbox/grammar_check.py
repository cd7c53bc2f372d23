"""GrammarCheck: check that a request's grammar compiles within limits of time and memory."""

import asyncio
import hashlib
import threading
from collections import OrderedDict
from functools import partial
from weakref import WeakValueDictionary

from caravan.server.sandbox import grammar_worker
from caravan.server.sandbox.fair_executor import FairExecutor
from caravan.server.sandbox.worker_pool import WorkerPool
from caravan.server.sandbox.worker_process import MemoryLimitExceeded, TimeLimitExceeded, WorkerProcess

MAX_CHARACTERS = 256 * 1024  # of a grammar
FIRST_LIMIT_SECONDS = 0.25  # processor time; most grammars take a few milliseconds
TIME_LIMIT_SECONDS = 2.0  # processor time
MAX_WAITING_PER_KEY = 512  # checks
MAX_SLOW_PER_KEY = 32  # checks in the second queue, where each may take seconds
MEMORY_LIMIT_BYTES = 2**30  # address space of a worker
_MAX_VERDICTS = 256
_NUM_THREADS = 2  # of each queue
_SLOW_NICENESS = 5  # of workers that run for seconds: the engine has priority


class GrammarCheck:
    """Compiles grammars in worker processes before the engine gets them, and caches the verdicts.

    The engine compiles a grammar again, for the model's vocabulary; without this check an expensive one would block
    it. Processes are started with the first grammar.

    There are two queues with two threads each, of which one key uses at most one. Every grammar first gets
    `first_limit_seconds` of processor time; one that takes longer is compiled again in the second queue, with the full
    limit. So slow grammars delay quick ones by the first limit at most, and a key that sends only slow grammars leaves
    one thread of each queue to other keys. *Price:* a slow grammar is started twice.
    """

    def __init__(
        self,
        *,
        first_limit_seconds: float = FIRST_LIMIT_SECONDS,
        time_limit_seconds: float = TIME_LIMIT_SECONDS,
        max_waiting_per_key: int = MAX_WAITING_PER_KEY,
        worker_program: str = grammar_worker.__file__,
        wall_limit_seconds: float | None = None,
    ) -> None:
        """`worker_program` has the interface of grammar_worker.py; see WorkerProcess for the wall limit."""
        self._time_limit_seconds = time_limit_seconds
        first_limit_seconds = min(first_limit_seconds, time_limit_seconds)
        max_slow = min(max_waiting_per_key, MAX_SLOW_PER_KEY)
        common = worker_program, wall_limit_seconds
        self._first = _Stage(first_limit_seconds, *common, max_waiting_per_key, niceness=0)
        self._second = _Stage(time_limit_seconds, *common, max_slow, niceness=_SLOW_NICENESS)
        self._lock = threading.Lock()  # for the two below; never held during a call of a worker
        self._verdicts: OrderedDict[bytes, str] = OrderedDict()  # by the hash of a grammar
        self._checks: WeakValueDictionary[bytes, _Check] = WeakValueDictionary()  # those in flight
        self._tasks: dict[tuple[str, bytes], asyncio.Task[str]] = {}  # by key and grammar

    @property
    def pids(self) -> list[int]:
        """The process ids of all workers."""
        return [*self._first.workers.pids, *self._second.workers.pids]

    async def find_problem(self, grammar: str, key: str) -> str:
        """Return why the grammar cannot be used, or an empty string; waits for the turn of the API key `key`.

        A cached verdict is returned at once; concurrent checks of the same grammar are merged.
        Raises ExecutorFull if too many grammars of the key are waiting, WorkerUnavailable if workers are lost.
        """
        if len(grammar) > MAX_CHARACTERS:
            return _too_long(grammar)
        digest = _digest(grammar)
        verdict = self._cached(digest)
        if verdict is not None:
            return verdict
        task = self._tasks.get((key, digest))
        if task is None:
            task = self._tasks[key, digest] = asyncio.create_task(self._find(grammar, digest, key))
            task.add_done_callback(lambda done: self._forget(key, digest, done))
        return await asyncio.shield(task)  # other requests may wait for it

    def close(self) -> None:
        """End the workers. Only cached verdicts are available afterwards."""
        for task in self._tasks.values():
            task.cancel()
        for stage in (self._first, self._second):
            stage.turns.close()
            stage.workers.close()

    async def _find(self, grammar: str, digest: bytes, key: str) -> str:
        check = self._check(digest)
        for stage in (self._second,) if check.is_slow else (self._first, self._second):
            verdict = await stage.turns.run(key, partial(self._compile, check, grammar, digest, stage))
            if verdict is not None:
                return verdict
        raise AssertionError("the last stage always has a verdict")

    def _compile(self, check: "_Check", grammar: str, digest: bytes, stage: "_Stage") -> str | None:
        """Return a worker's verdict, None if the next stage must decide; runs in a thread."""
        is_first = stage is self._first
        # Another key may have sent the same grammar. With two locks the first stage never waits for the second.
        with check.first_lock if is_first else check.second_lock:
            verdict = self._cached(digest)
            if verdict is not None or (is_first and check.is_slow):
                return verdict
            try:
                reply = stage.workers.call({"grammar": grammar})
            except TimeLimitExceeded:
                if is_first:
                    check.is_slow = True
                    return None
                verdict = f"it takes more than {self._time_limit_seconds:g} s of processor time to compile"
            except MemoryLimitExceeded:
                verdict = f"it takes more than {MEMORY_LIMIT_BYTES >> 20} MiB of memory to compile"
            else:
                verdict = " ".join(reply.get("failed", "").split())
            self._store(digest, verdict)
            return verdict

    def _check(self, digest: bytes) -> "_Check":
        with self._lock:
            return self._checks.setdefault(digest, _Check())

    def _cached(self, digest: bytes) -> str | None:
        with self._lock:
            if digest in self._verdicts:
                self._verdicts.move_to_end(digest)
            return self._verdicts.get(digest)

    def _store(self, digest: bytes, verdict: str) -> None:
        with self._lock:
            self._verdicts[digest] = verdict
            if len(self._verdicts) > _MAX_VERDICTS:
                self._verdicts.popitem(last=False)

    def _forget(self, key: str, digest: bytes, task: asyncio.Task[str]) -> None:
        del self._tasks[key, digest]
        if not task.cancelled():
            task.exception()  # else asyncio logs it as never retrieved


class _Stage:
    """Workers with one limit of processor time, and their queue."""

    def __init__(
        self,
        limit_seconds: float,
        program: str,
        wall_limit_seconds: float | None,
        max_waiting_per_key: int,
        *,
        niceness: int,
    ) -> None:
        self.workers = WorkerPool(
            lambda: WorkerProcess(
                program, limit_seconds, MEMORY_LIMIT_BYTES, wall_limit_seconds=wall_limit_seconds, niceness=niceness
            )
        )
        self.turns = FairExecutor(
            "grammar checks",
            num_threads=_NUM_THREADS,
            max_running_per_key=_NUM_THREADS - 1,
            max_waiting_per_key=max_waiting_per_key,
            seconds_per_call=limit_seconds,
        )


class _Check:
    """The state of one grammar's check while it is in flight."""

    def __init__(self) -> None:
        self.first_lock = threading.Lock()
        self.second_lock = threading.Lock()
        self.is_slow = False  # it takes more than the first limit


def _digest(grammar: str) -> bytes:
    return hashlib.sha256(grammar.encode("utf-8", "surrogatepass")).digest()


def _too_long(grammar: str) -> str:
    return f"it has {len(grammar)} characters, more than {MAX_CHARACTERS}"
