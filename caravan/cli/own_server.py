"""The server that a command starts for itself, on a Unix socket that only this user can connect to."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from caravan.server.option_groups import LimitSettings, MemorySettings, ModelSettings
from caravan.server.settings import ENV_PREFIX

PROGRAM: tuple[str, ...] = ("-P", "-m", "caravan.cli.attached_server")
MAX_NUM_SEQS = 1  # a chat asks one question at a time; as much again is kept of earlier ones
# Options that fit only a server of several models, of replicas, or of ranks on other hosts.
OPTIONS_OF_OTHERS = frozenset({"models", "models_memory", "engines", "remote_ranks"})
ENDINGS = (signal.SIGHUP, signal.SIGTERM)  # the terminal is closed, or the process shall end
STOP_SECONDS = 10.0  # for the server to exit before it is killed
_POLL_SECONDS = 0.05


class ServerFailed(Exception):
    """The server cannot be started; the text is one line that says why."""


@contextmanager
def own_server(model: str, program: tuple[str, ...] = PROGRAM) -> Iterator[Path]:
    """Serve a model inside the block; yields the path of the server's socket. Raises ServerFailed.

    The server ends with the block, and also if this process is killed: its standard input ends then.
    Inside the block SIGHUP and SIGTERM raise SystemExit, so that the server's folder is removed.
    """
    with _exits_at_signals(), tempfile.TemporaryDirectory(prefix="caravan-", ignore_cleanup_errors=True) as folder:
        path, log_path = Path(folder) / "socket", Path(folder) / "log"
        with log_path.open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, *program, model, "--uds", str(path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=log,
                start_new_session=True,  # Ctrl-C stops an answer, not the server
                env=server_environment(os.environ),
            )
        try:
            _wait(process, path, log_path)
            yield path
        finally:
            _stop(process)


def server_environment(inherited: Mapping[str, str]) -> dict[str, str]:
    """Return the inherited environment without options of a server that others use, such as its port and its keys.

    Options of the model, the memory and the limits remain, except OPTIONS_OF_OTHERS. MAX_NUM_SEQS is the default here.
    """
    groups = (ModelSettings, MemorySettings, LimitSettings)
    names = {name for group in groups for name in group.model_fields} - OPTIONS_OF_OTHERS
    kept = {ENV_PREFIX + name.upper() for name in names}
    environ = {
        name: value
        for name, value in inherited.items()
        if not name.upper().startswith(ENV_PREFIX) or name.upper() in kept
    }
    return {f"{ENV_PREFIX}MAX_NUM_SEQS": str(MAX_NUM_SEQS)} | environ


@contextmanager
def _exits_at_signals() -> Iterator[None]:
    """Let ENDINGS raise SystemExit inside the block, unless they are ignored; only the first counts."""
    changed = [number for number in ENDINGS if signal.getsignal(number) is signal.SIG_DFL]

    def end(number: int, frame: FrameType | None) -> None:  # noqa: ARG001  # a handler's signature
        for one in changed:
            # No SIG_IGN: Python complains if a signal that has arrived already is ignored then.
            signal.signal(one, lambda *_: None)
        raise SystemExit(128 + number)

    try:
        for number in changed:
            signal.signal(number, end)
        yield
    finally:
        for number in changed:
            signal.signal(number, signal.SIG_DFL)


def _wait(process: "subprocess.Popen[bytes]", path: Path, log_path: Path) -> None:
    """Return when the server accepts connections; raises ServerFailed if it ends first."""
    while not _accepts(path):
        if process.poll() is not None:
            lines = log_path.read_text("utf-8", "replace").strip().splitlines()
            raise ServerFailed(lines[-1] if lines else f"The server ended with status {process.returncode}.")
        time.sleep(_POLL_SECONDS)


def _accepts(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(str(path))
        except OSError:
            return False
    return True


def _stop(process: "subprocess.Popen[bytes]") -> None:
    assert process.stdin is not None
    with suppress(BrokenPipeError):
        process.stdin.close()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
