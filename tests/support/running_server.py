"""A server in a process of its own, started as its users start it."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx

from tests.support.cores import num_threads
from tests.support.waiting import eventually

START_SECONDS = 60


class RunningServer:
    """What a test knows of it: where it listens, its process, what it has written so far."""

    def __init__(self, process: "subprocess.Popen[str]", url: str, start_text: str) -> None:
        self.process = process
        self.url = url
        self.start_text = start_text
        self.http = httpx.Client(base_url=url, timeout=60, trust_env=False)

    def __enter__(self) -> "RunningServer":
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()

    def metrics(self) -> str:
        """Return all metrics as text."""
        return self.http.get("/metrics").text

    def metric(self, name: str) -> float:
        """Return the one sample of a gauge or counter."""
        found = re.search(rf"^caravan_{name}\{{[^}}]*\}} (\S+)$", self.metrics(), re.MULTILINE)
        assert found, name
        return float(found[1])

    def children(self, parent: int | None = None) -> list[int]:
        """Return the process ids of its children, the engine's first, or those of another parent's children."""
        return children_of(self.process.pid if parent is None else parent)

    def engine_pids(self) -> list[int]:
        """Return the process ids of the engine and of its standby, if there is one, which was started after it."""
        return [pid for pid in self.children() if "caravan.scheduler." in command_of(pid)]

    def engine_pid(self) -> int:
        """Return the process id of the engine."""
        pids = self.engine_pids()
        assert pids, "there is no engine process"
        return pids[0]

    def kill_engine(self) -> None:
        """Kill the engine, and wait until another one is ready: the server is ready until it notices the end, too."""
        restarts = self.metric("engine_restarts_total")
        os.kill(self.engine_pid(), signal.SIGKILL)
        eventually(lambda: self.metric("engine_restarts_total") > restarts)
        eventually(lambda: self.http.get("/readyz").status_code == 200)

    def rank_pids(self) -> list[int]:
        """Return the process ids of the ranks of the engine, which is the first of them."""
        engine = self.engine_pid()
        return [engine, *self.children(engine)]


@contextmanager
def running_server(
    model: Path | str,
    *options: str,
    program: str = "caravan",
    in_new_group: bool = False,
    environ: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> Iterator[RunningServer]:
    """Start `caravan serve` on a free port and stop it at the end; what it says goes to the test's output.

    In a process group of its own it can be sent what a terminal or a supervisor sends to the group. Another environment
    and working folder take the place of the test's. Where several of pytest's processes share the cores, it gets as
    many threads as they have; bits do not depend on their number.
    """
    environ = os.environ if environ is None else environ
    if "PYTEST_XDIST_WORKER_COUNT" in os.environ:
        environ = {"CARAVAN_NUM_THREADS": f"{num_threads()}", **environ}
    process = subprocess.Popen(
        [sys.executable, "-m", program, "serve", str(model), "--port", "0", *options],
        stdout=subprocess.PIPE,
        text=True,
        process_group=0 if in_new_group else None,
        env=environ,
        cwd=cwd,
    )
    assert process.stdout is not None
    lines: list[str] = []
    try:
        while not lines or not lines[-1].startswith("Ready"):
            lines.append(process.stdout.readline())
            assert lines[-1], f"the server ended: {lines}"
        found = re.search(r"https?://\S+(?=/v1 )", lines[-1])
        assert found
        with RunningServer(process, found[0], "".join(lines)) as running:
            yield running
    finally:
        process.terminate()
        try:
            process.wait(60)
        finally:
            process.kill()
            process.stdout.close()


def children_of(parent: int) -> list[int]:
    """Return the process ids of a process's children, oldest first.

    It is read from /proc within a millisecond: a test that kills an engine in the middle of an answer must not start
    a program first, in whose time the engine may end the answer.
    """
    stats = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(FileNotFoundError, ProcessLookupError):  # it has ended
            stats[int(path.parent.name)] = path.read_text().rpartition(")")[2].split()
    children = [pid for pid, fields in stats.items() if int(fields[1]) == parent]
    return sorted(children, key=lambda pid: (int(stats[pid][19]), pid))  # by start time, in ticks since the boot


def command_of(pid: int) -> str:
    """Return the program of a process and its arguments, nothing of one that has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def is_alive(pid: int) -> bool:
    """Return whether a process is there and has not ended; one that waits for its parent to ask has ended."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rpartition(")")[2].split()[0] not in "ZX"
