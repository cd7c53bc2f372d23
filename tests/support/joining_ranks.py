"""Ranks that join an engine over the loopback interface: in threads of a test, or as `caravan rank` starts them."""

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from caravan.scheduler.joining_rank import serve_first_rank
from caravan.scheduler.rank_options import RankOptions
from caravan.scheduler.rank_secret import enter
from tests.support.running_server import children_of, command_of

SECRET = b"a secret of tests, which has 16 bytes"


def free_address() -> str:
    """Return an address of this machine at which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"127.0.0.1:{listener.getsockname()[1]}"


def secret_file(folder: Path, secret: bytes = SECRET) -> Path:
    """Return a new file with a secret."""
    path = folder / f"secret-{len(secret)}"
    path.write_bytes(secret + b"\n")
    return path


def connect(address: str, secret: bytes | None = SECRET) -> socket.socket:
    """Return a connection to an engine that waits for ranks, or will soon; without a secret it has shown none."""
    host, _, port = address.rpartition(":")
    deadline = time.monotonic() + 30
    while True:
        with suppress(ConnectionRefusedError):
            connection = socket.create_connection((host, int(port)), 30)
            try:
                if secret is not None:
                    enter(connection, secret)
            except BaseException:
                connection.close()
                raise
            return connection
        assert time.monotonic() < deadline, "nobody listens"
        time.sleep(0.02)


class JoiningThread:
    """A rank that joins from a thread, and ends with the engine."""

    def __init__(self, address: str, model: Path, num_threads: int = 1) -> None:
        self.exit_status: object = None
        self.connection: socket.socket | None = None
        self._address = address
        self._options = RankOptions(model_path=str(model), address=address, num_threads=num_threads)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def join(self) -> None:
        """Wait until the rank has ended."""
        self._thread.join(60)
        assert not self._thread.is_alive()

    def _serve(self) -> None:
        try:
            with connect(self._address) as self.connection, suppress(OSError):
                serve_first_rank(self.connection, self._options)
        except SystemExit as error:
            self.exit_status = error.code


@contextmanager
def joining_process(model: Path, address: str, secret: Path) -> "Iterator[subprocess.Popen[str]]":
    """Start `caravan rank`, and stop it at the end."""
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "caravan", "rank", str(model), "--join", address),
            *("--secret-file", str(secret), "--num-threads", "1"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.terminate()
        process.wait(60)
        for stream in (process.stdout, process.stderr):
            assert stream is not None
            stream.close()


def rank_pid(process: "subprocess.Popen[str]") -> int | None:
    """Return the process id of the rank that `caravan rank` has started, None if there is none now."""
    return next((pid for pid in children_of(process.pid) if "caravan.scheduler.joining_rank" in command_of(pid)), None)
