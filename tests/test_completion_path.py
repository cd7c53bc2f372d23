"""The path of one streamed completion: the modules that run between its first byte in and its last byte out."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from tests.support.running_server import children_of, command_of

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
MAX_MODULES = 98
MAX_LINES = 11_720  # of all files, docstrings and blank lines included


def test_a_streamed_completion_runs_through_few_modules(tiny_model_path: Path, tmp_path: Path) -> None:
    server = subprocess.Popen(
        [
            *(sys.executable, "-m", "tests.support.traced_program", str(tmp_path)),
            *("caravan", "serve", str(tiny_model_path)),
            *("--port", "0", "--kv-cache-memory", "4MiB", "--dtype", "float32"),
        ],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert server.stdout is not None
    try:
        lines: list[str] = []
        while not lines or not lines[-1].startswith("Ready"):
            lines.append(server.stdout.readline())
            assert lines[-1], f"the server ended: {lines}"
        url = lines[-1].split()[1]
        (engine,) = (pid for pid in children_of(server.pid) if "caravan.scheduler" in command_of(pid))
        name = httpx.get(f"{url}/models", trust_env=False).json()["data"][0]["id"]
        body = {"model": name, "prompt": "Hello", "max_tokens": 8, "stream": True}
        complete(url, body)  # the first one imports and compiles what the others find ready
        for pid in (server.pid, engine):
            os.kill(pid, signal.SIGUSR1)
        time.sleep(0.5)
        complete(url, body)
        for pid in (server.pid, engine):
            os.kill(pid, signal.SIGUSR2)
        deadline = time.monotonic() + 30
        while len([*tmp_path.glob("*.txt")]) < 2:
            assert time.monotonic() < deadline, "the modules were not written"
            time.sleep(0.05)
    finally:
        server.terminate()
        server.wait(60)
        server.stdout.close()
    modules = sorted({line for file in tmp_path.glob("*.txt") for line in file.read_text().splitlines()})
    sizes = {module: len((ROOT / module).read_text().splitlines()) for module in modules}
    print(*(f"{size:5} {module}" for module, size in sizes.items()), sep="\n")
    print(f"{sum(sizes.values()):5} lines in {len(sizes)} modules")
    assert {"server/app.py", "scheduler/engine.py", "model/llama.py"} & sizes.keys()
    assert len(sizes) <= MAX_MODULES
    assert sum(sizes.values()) <= MAX_LINES


def complete(url: str, body: dict[str, object]) -> None:
    """Ask for a streamed completion and read it to its end."""
    answer = httpx.post(f"{url}/completions", json=body, timeout=60, trust_env=False)
    assert answer.text.endswith("data: [DONE]\n\n"), answer.text
