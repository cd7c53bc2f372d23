"""WorkerProcess: a child process for untrusted input, with time and memory limits."""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Mapping

import msgspec

from caravan.server.sandbox.special_tokens import Json

MEMORY_EXIT_STATUS = 77  # of a worker that has caught a MemoryError
_MAX_REPLY_BYTES = 128 * 2**20
_CHUNK_BYTES = 2**16
_OUT_OF_MEMORY = b"memory allocation of"  # written by Rust's runtime before it aborts


class LimitExceeded(Exception):
    """The request exceeds the worker's processor time or memory; the request is the cause."""


class TimeLimitExceeded(LimitExceeded):
    """The request exceeds the processor time limit."""


class MemoryLimitExceeded(LimitExceeded):
    """The request exceeds the memory limit."""


class WorkerLost(Exception):
    """The worker ended or hung for a reason other than its limits; the request is not the cause."""


class WorkerProcess:
    """Runs a worker program by its path; handles one request at a time.

    A worker gets three arguments: its processor time limit per request in seconds, its memory limit in bytes, and its
    niceness (see nice(2)). It replies to each line of standard input, a JSON object, with one line of JSON. Processor
    time does not advance while the machine is busy or the worker is stopped; `wall_limit_seconds`, enforced by the
    parent, limits such waits.
    """

    def __init__(
        self,
        program: str,
        time_limit_seconds: float,
        memory_limit_bytes: int,
        *,
        wall_limit_seconds: float | None = None,
        niceness: int = 0,
        options: tuple[str, ...] = ("-I",),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """The default wall limit is 5 s plus five times the time limit.

        `options` are the interpreter's, before the program: code that escapes from an isolated one finds no modules.
        The default environment is minimal: such code finds no secrets.
        """
        if environment is None:
            environment = {name: os.environ[name] for name in ("TZ", "LD_LIBRARY_PATH") if name in os.environ}
        self._wall_limit_seconds = 5 + 5 * time_limit_seconds if wall_limit_seconds is None else wall_limit_seconds
        self._process = subprocess.Popen(
            [sys.executable, *options, program, str(time_limit_seconds), str(memory_limit_bytes), str(niceness)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            env=environment,
            start_new_session=True,  # Ctrl-C goes to the server only
        )
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            assert pipe is not None
            os.set_blocking(pipe.fileno(), False)
        self._end = weakref.finalize(self, _end_process, self._process)

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def call(self, request: dict[str, Json]) -> dict[str, str]:
        """Return the worker's reply.

        Raises TimeLimitExceeded, MemoryLimitExceeded or WorkerLost; the worker has ended in each case.
        """
        if not self._end.alive:
            raise WorkerLost("the worker was closed")
        encoded = _encoded(request) + b"\n"
        try:
            line = self._round_trip(encoded)
        except OSError:  # it has ended
            line = None
        if line is None:
            raise self._exit_error()
        try:
            return msgspec.json.decode(line, type=dict[str, str])
        except msgspec.DecodeError:
            self.close()
            raise WorkerLost("the worker's reply is not JSON") from None

    def kill(self) -> None:
        """End the process from a thread other than the one in `call`."""
        self._process.kill()

    def close(self) -> None:
        """End the process; must not be called during `call`."""
        self._end()

    def _round_trip(self, request: bytes) -> bytearray | None:
        """Write a line and read a line; return None if the worker ends first, or exceeds the time or reply limit."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        stdin, stdout = self._process.stdin.fileno(), self._process.stdout.fileno()
        deadline = time.monotonic() + self._wall_limit_seconds
        unsent, line = memoryview(request), bytearray()
        poll = select.poll()
        poll.register(stdin, select.POLLOUT)
        poll.register(stdout, select.POLLIN)
        while not line.endswith(b"\n"):
            left_seconds = deadline - time.monotonic()
            if left_seconds <= 0 or len(line) > _MAX_REPLY_BYTES:
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

    def _exit_error(self) -> LimitExceeded | WorkerLost:
        """End the process if it still runs, and return the error that its exit stands for."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(0.2)  # it has closed its pipes and is about to exit
        status = self._process.poll()
        errors = _error_output(self._process)
        self.close()
        if status in (-signal.SIGPROF, -signal.SIGXCPU):
            return TimeLimitExceeded()
        if status == MEMORY_EXIT_STATUS or (status == -signal.SIGABRT and _OUT_OF_MEMORY in errors):
            return MemoryLimitExceeded()
        if status is None:
            return WorkerLost(f"the worker did not reply within {self._wall_limit_seconds:g} seconds")
        return WorkerLost(f"the worker ended with {'signal' if status < 0 else 'exit status'} {abs(status)}")


def _encoded(request: dict[str, Json]) -> bytes:
    try:
        return msgspec.json.encode(request)  # fast: the GIL is held meanwhile
    except UnicodeEncodeError:  # half of a surrogate pair
        return json.dumps(request).encode()


def _error_output(process: subprocess.Popen[bytes]) -> bytes:
    """Return the beginning of the process's standard error."""
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
