"""Ranks in threads of the test instead of processes: quick to start, and their lines are counted as covered."""

import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from caravan.scheduler.config import EngineLimits
from caravan.scheduler.engine import Engine
from caravan.scheduler.loaded_model import load
from caravan.scheduler.messages import StartEngine
from caravan.scheduler.rank import serve
from caravan.scheduler.ranked_loading import load_ranked
from caravan.scheduler.ranks import Spawn


class RankThread:
    """A rank that runs in a thread, as far as a process can be one."""

    pid = 0

    def __init__(self, connection: socket.socket) -> None:
        self.returncode: int | None = None
        self._connection = connection
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def wait(self, timeout: float | None = None) -> int:
        self._thread.join(timeout)
        if self._thread.is_alive():
            raise subprocess.TimeoutExpired("rank", timeout or 0)
        self.returncode = 0
        return 0

    def kill(self) -> None:
        """A thread cannot be killed: it ends with its connection."""

    def _serve(self) -> None:
        with self._connection, suppress(BrokenPipeError, ConnectionResetError):
            serve(self._connection)


def spawn_thread(connection: socket.socket, memory: int | None) -> RankThread:
    """Start a rank in a thread."""
    return RankThread(connection.dup())


def start_of(path: Path, num_ranks: int = 1, *, pool_bytes: int = 2**22, **options: Any) -> StartEngine:
    """Return the start message of an engine with one thread for each rank."""
    limits = {name: options.pop(name) for name in EngineLimits.__struct_fields__ if name in options}
    limits = {"max_model_len": 256, "kv_cache_memory_bytes": pool_bytes} | limits
    return StartEngine(
        model_path=str(path), num_threads=1, num_ranks=num_ranks, limits=EngineLimits(**limits), **options
    )


@contextmanager
def engine_with(start: StartEngine, spawn: Spawn = spawn_thread) -> Iterator[Engine]:
    """Yield the engine of a start message, and end its ranks."""
    loaded = load(start) if start.num_ranks == 1 else load_ranked(start, spawn)
    try:
        engine, _, _ = loaded.make_engine()
        yield engine
    finally:
        if loaded.ranks is not None:
            loaded.ranks.close()
