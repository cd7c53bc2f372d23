"""A server in a process of its own, started as its users start it."""

import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx

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

    def children(self) -> list[int]:
        """Return the process ids of its children, the engine's first."""
        listed = subprocess.run(
            ["ps", "-o", "pid=", "--ppid", str(self.process.pid)], capture_output=True, text=True, check=False
        )
        return sorted(map(int, listed.stdout.split()))

    def engine_pids(self) -> list[int]:
        """Return the process ids of the engine and of its standby, if there is one, which was started after it."""
        pids: list[int] = []
        for pid in self.children():
            with suppress(FileNotFoundError, ProcessLookupError):  # it has ended
                if b"caravan.scheduler." in Path(f"/proc/{pid}/cmdline").read_bytes():
                    pids.append(pid)
        return pids

    def engine_pid(self) -> int:
        """Return the process id of the engine."""
        pids = self.engine_pids()
        assert pids, "there is no engine process"
        return pids[0]


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
    and working folder take the place of the test's.
    """
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
            process.wait(20)
        finally:
            process.kill()
            process.stdout.close()


def is_alive(pid: int) -> bool:
    """Return whether a process is there and has not ended; one that waits for its parent to ask has ended."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rpartition(")")[2].split()[0] not in "ZX"


def eventually(holds: Callable[[], bool], *, within_seconds: float) -> None:
    """Wait until `holds` does; fail if that takes too long."""
    deadline = time.monotonic() + within_seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not come to hold"
        time.sleep(0.02)
