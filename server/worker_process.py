"""WorkerProcess: a process for what comes from strangers, which can be ended and has little memory."""

import json
import logging
import os
import subprocess
import sys
import weakref

from server.special_token_guard import Json

logger = logging.getLogger(__name__)


class WorkerProcess:
    """Runs one of our files, a worker, by its path; asked one question at a time.

    A worker is given its time limit in seconds and its memory limit in bytes as arguments, and keeps to them itself. It
    answers each line of its standard input, a JSON object, by one line of another.
    """

    def __init__(self, program: str, time_limit_seconds: float, memory_limit_bytes: int) -> None:
        # -I and the short environment: what escapes finds no secrets and none of our modules.
        self._process = subprocess.Popen(
            [sys.executable, "-I", program, str(time_limit_seconds), str(memory_limit_bytes)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={name: os.environ[name] for name in ("TZ", "LD_LIBRARY_PATH") if name in os.environ},
            start_new_session=True,  # Ctrl-C in the terminal is for the server
        )
        self._end = weakref.finalize(self, _end_process, self._process)

    def ask(self, question: dict[str, Json]) -> dict[str, str] | None:
        """Return the answer, or None if the worker ended instead."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(question).encode() + b"\n")
            self._process.stdin.flush()
        except (BrokenPipeError, ValueError):  # ValueError: closed before
            return None
        line = self._process.stdout.readline()
        if not line.endswith(b"\n"):
            return None
        answer: dict[str, str] = json.loads(line)
        return answer

    def close(self) -> int:
        """End the process and return its exit status."""
        self._end()
        return self._process.returncode


def _end_process(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        try:
            pipe.close()
        except BrokenPipeError:
            logger.debug("The worker ended before it read everything.")
