"""WorkerProcess: a process for input from strangers, which can be ended and has limits of time and memory."""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
import weakref

import msgspec

from caravan.server.sandbox.special_tokens import Json

MEMORY_EXIT_STATUS = 77  # of a worker that has caught a MemoryError
_MAX_ANSWER_BYTES = 128 * 2**20
_CHUNK_BYTES = 2**16
_OUT_OF_MEMORY = b"memory allocation of"  # written by Rust's runtime before it aborts


class LimitExceeded(Exception):
    """The question takes more processor time or memory than the worker may use: a fact about the question."""


class TimeLimitExceeded(LimitExceeded):
    """The question takes more processor time than the limit."""


class MemoryLimitExceeded(LimitExceeded):
    """The question takes more memory than the limit."""


class WorkerLost(Exception):
    """The worker ended or stopped for another reason than its limits, which says nothing about the question."""


class WorkerProcess:
    """Runs one of our files, a worker, by its path; asked one question at a time.

    A worker gets three arguments: its limit of processor time for each question in seconds, its memory limit in bytes,
    and how much it yields to other processes (see nice(2)). It answers each line of its standard input, a JSON object,
    by one line of another. Processor time does not pass while the machine is busy with others or the worker is stopped;
    `wall_limit_seconds`, kept on this side, bounds such waits.
    """

    def __init__(
        self,
        program: str,
        time_limit_seconds: float,
        memory_limit_bytes: int,
        *,
        wall_limit_seconds: float | None = None,
        niceness: int = 0,
    ) -> None:
        """The wall limit is 5 s and five times the time limit unless it is given."""
        self._wall_limit_seconds = 5 + 5 * time_limit_seconds if wall_limit_seconds is None else wall_limit_seconds
        # -I and the short environment: what escapes finds no secrets and none of our modules.
        self._process = subprocess.Popen(
            [sys.executable, "-I", program, str(time_limit_seconds), str(memory_limit_bytes), str(niceness)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            env={name: os.environ[name] for name in ("TZ", "LD_LIBRARY_PATH") if name in os.environ},
            start_new_session=True,  # Ctrl-C in the terminal is for the server
        )
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            assert pipe is not None
            os.set_blocking(pipe.fileno(), False)
        self._end = weakref.finalize(self, _end_process, self._process)

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def ask(self, question: dict[str, Json]) -> dict[str, str]:
        """Return the answer.

        Raises TimeLimitExceeded, MemoryLimitExceeded or WorkerLost; the worker has ended then.
        """
        if not self._end.alive:
            raise WorkerLost("the worker was closed")
        encoded = _encoded(question) + b"\n"
        try:
            line = self._exchange(encoded)
        except OSError:  # it has ended
            line = None
        if line is None:
            raise self._ending()
        try:
            return msgspec.json.decode(line, type=dict[str, str])
        except msgspec.DecodeError:
            self.close()
            raise WorkerLost("the worker's answer is not JSON") from None

    def kill(self) -> None:
        """End the process from another thread than the one that asks it."""
        self._process.kill()

    def close(self) -> None:
        """End the process; not while it is asked."""
        self._end()

    def _exchange(self, question: bytes) -> bytearray | None:
        """Write a line and read a line; return None if the worker ends before, or takes or says too much."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        stdin, stdout = self._process.stdin.fileno(), self._process.stdout.fileno()
        deadline = time.monotonic() + self._wall_limit_seconds
        unsent, line = memoryview(question), bytearray()
        poll = select.poll()
        poll.register(stdin, select.POLLOUT)
        poll.register(stdout, select.POLLIN)
        while not line.endswith(b"\n"):
            left_seconds = deadline - time.monotonic()
            if left_seconds <= 0 or len(line) > _MAX_ANSWER_BYTES:
                return None
            for descriptor, _ in poll.poll(1000 * left_seconds):
                if descriptor == stdin:
                    unsent = unsent[os.write(stdin, unsent[:_CHUNK_BYTES]) :]
                    if not unsent:
                        poll.unregister(stdin)
                else:
                    chunk = os.read(stdout, _CHUNK_BYTES)
                    if not chunk:
                        return None
                    line += chunk
        return line

    def _ending(self) -> LimitExceeded | WorkerLost:
        """End the process if it still runs, and return what that says of the question."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(0.2)  # it has closed its pipes and is about to end
        status = self._process.poll()
        said = _last_words(self._process)
        self.close()
        if status in (-signal.SIGPROF, -signal.SIGXCPU):
            return TimeLimitExceeded()
        if status == MEMORY_EXIT_STATUS or (status == -signal.SIGABRT and _OUT_OF_MEMORY in said):
            return MemoryLimitExceeded()
        if status is None:
            return WorkerLost(f"the worker has not answered within {self._wall_limit_seconds:g} seconds")
        return WorkerLost(f"the worker ended with {'signal' if status < 0 else 'exit status'} {abs(status)}")


def _encoded(question: dict[str, Json]) -> bytes:
    try:
        return msgspec.json.encode(question)  # quick: Python's lock is held meanwhile
    except UnicodeEncodeError:  # half of a surrogate pair
        return json.dumps(question).encode()


def _last_words(process: subprocess.Popen[bytes]) -> bytes:
    """Return the beginning of what the process has written to its standard error."""
    assert process.stderr is not None
    try:
        return os.read(process.stderr.fileno(), _CHUNK_BYTES)
    except OSError:
        return b""


def _end_process(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout, process.stderr):
        assert pipe is not None
        pipe.close()
