"""A server to measure: started, polled until it responds, and stopped with all its children."""

import json
import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.variants import Variant

_START_SECONDS = 300
_STOP_SECONDS = 20


@dataclass(frozen=True)
class ServerProcess:
    """A server that is ready."""

    pid: int
    url: str
    first_token_seconds: float  # from its command to its first token

    def peak_bytes(self) -> int:
        """Return the sum over its processes of the most memory each has had (VmHWM); shared memory counts twice."""
        root = psutil.Process(self.pid)
        return sum(map(_peak_bytes, [root.pid, *(child.pid for child in root.children(recursive=True))]))


class ServerFailed(Exception):
    """A server ended or was not ready in time; the message names its log."""


@contextmanager
def running(variant: Variant, log: Path) -> Iterator[ServerProcess]:
    """Start a server on a free port, yield it when it has given its first token, and stop it."""
    port = _free_port()
    url = f"http://127.0.0.1:{port}"
    with log.open("wb") as output:
        started = time.monotonic()
        process = subprocess.Popen(
            variant.command(port),
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | variant.environment,
            start_new_session=True,
        )
        try:
            while not _has_answered(url):
                if process.poll() is not None or time.monotonic() - started > _START_SECONDS:
                    raise ServerFailed(f"{variant.name} did not start; see {log}.")
                time.sleep(0.02)
            yield ServerProcess(process.pid, url, time.monotonic() - started)
        finally:
            _stop(process)


def _has_answered(url: str) -> bool:
    """Return whether the server completes a prompt by one token; not every server takes token ids."""
    return any(_completes(url, prompt) for prompt in ([504, 3575, 282], "The capital of France is"))


def _completes(url: str, prompt: str | list[int]) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/v1/models", timeout=5) as response:
            listed = json.loads(response.read())
        fields = {"model": listed["data"][0]["id"], "prompt": prompt, "max_tokens": 1}
        request = urllib.request.Request(
            f"{url}/v1/completions", json.dumps(fields).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            return bool(response.status == 200)
    except (OSError, ValueError, LookupError):  # not there, still loading
        return False


def _stop(process: "subprocess.Popen[bytes]") -> None:
    """End the server, and then its remaining children."""
    children = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    _, alive = psutil.wait_procs(children, timeout=_STOP_SECONDS)
    for child in alive:
        child.kill()


def _peak_bytes(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:  # ended meanwhile
        return 0
    (line,) = [line for line in status.splitlines() if line.startswith("VmHWM")] or ["VmHWM: 0 kB"]
    return int(line.split()[1]) * 1024


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
