"""Time the starts of a server with one file and its memory: `python -m benchmarks.starts FILE.gguf`.

Each round has a first start with an empty cache, a second one that maps the packed weights, and a first one that may
keep none. With --memory it is not the time that counts, but the most memory that the server's processes have together
(Pss: a page that several share counts once): reading it slows a start down.
"""

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import httpx
import psutil

from benchmarks.compare import wait_for_packed_weights

POOL = "1GiB"
POLL_SECONDS = 0.05
_STARTS: dict[str, tuple[str, ...]] = {  # in this order, each with further options
    "first start": (),
    "second start": (),
    "no cache": ("--weights-cache-size", "0"),
}


def pss_bytes(pid: int) -> int:
    """Return the memory of a process and its children; a page that several share counts once."""
    total = 0
    try:
        root = psutil.Process(pid)
        for process in [root, *root.children(recursive=True)]:
            lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
            total += next(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    except (psutil.Error, OSError, StopIteration):  # one has just ended
        return 0
    return total


def start(file: Path, cache: Path, options: tuple[str, ...], *, is_watched: bool) -> tuple[float, float]:
    """Return the seconds until a server is ready, and the most memory in bytes until its packed weights are written.

    The memory of a server that is not watched is 0.
    """
    log = cache / "log"
    with log.open("wb") as output:
        command = [sys.executable, "-m", "caravan", "serve", str(file), "--port", "0", "--kv-cache-memory", POOL]
        environment = os.environ | {"XDG_CACHE_HOME": str(cache)}
        began = time.monotonic()
        process = subprocess.Popen([*command, *options], stdout=output, stderr=subprocess.STDOUT, env=environment)
    peak = [0]
    ended = threading.Event()

    def watch() -> None:
        while is_watched and not ended.wait(POLL_SECONDS):
            peak[0] = max(peak[0], pss_bytes(process.pid))

    reader = threading.Thread(target=watch)
    reader.start()
    try:
        while "Ready" not in (text := log.read_text()):
            if process.poll() is not None:
                raise SystemExit(text)
            time.sleep(0.01)
        seconds = time.monotonic() - began
        (url,) = (line.split()[1].removesuffix("/v1") for line in text.splitlines() if line.startswith("Ready"))
        name = httpx.get(f"{url}/v1/models").json()["data"][0]["id"]
        body = {"model": name, "prompt": [504, 3575, 282], "max_tokens": 8}
        assert httpx.post(f"{url}/v1/completions", json=body, timeout=60).status_code == 200
        if not options:  # with options nothing is kept
            wait_for_packed_weights(log)
    finally:
        ended.set()
        reader.join()
        process.send_signal(signal.SIGTERM)
        process.wait(30)
    return seconds, peak[0]


def shown(seconds: float, num_bytes: float) -> str:
    """Return what counts of a start: its memory, if that was watched, or its time."""
    return f"at most {num_bytes / 1e9:.2f} GB" if num_bytes else f"ready after {seconds:.1f} s"


def main() -> None:
    """Run the rounds and print medians, with all values behind them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", action="store_true", help="watch the memory")
    arguments = parser.parse_args()
    with arguments.file.open("rb") as file:  # into the file cache
        while file.read(1 << 24):
            pass
    kernels = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "caravan" / "kernels"
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in _STARTS}
    for _ in range(arguments.rounds):
        with tempfile.TemporaryDirectory(dir=arguments.file.parent) as folder:
            cache = Path(folder)
            (cache / "caravan").mkdir()
            (cache / "caravan" / "kernels").symlink_to(kernels)
            for name, options in _STARTS.items():
                found[name].append(start(arguments.file, cache, options, is_watched=arguments.memory))
                print(f"{name}: {shown(*found[name][-1])}", flush=True)
    for name, values in found.items():
        median, most = statistics.median(value[0] for value in values), max(value[1] for value in values)
        print(f"{name:12} of {arguments.rounds}: {shown(median, most)}, with a pool of {POOL}")


if __name__ == "__main__":
    main()
