"""What a server on a CPU imports, with its engine: nothing that only a GPU needs, though it is installed."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).parent.parent
FOR_GPUS = (  # beginnings of names
    "triton",
    "caravan.model.cuda",
    "caravan.scheduler.device_step",
    "caravan.scheduler.overlap",
    "caravan.scheduler.sampling_launch",
    "caravan.scheduler.step_graph",
    "caravan.scheduler.warm_up",
)


def imported_modules(model_path: Path, stderr_path: Path) -> set[str]:
    """Return what the processes of a server import from their start to their end, with a completion in between."""
    environ = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONPROFILEIMPORTTIME": "1"}
    options = ("--port", "0", "--kv-cache-memory", "4MiB", "--device", "cpu", "--dtype", "float32")
    with stderr_path.open("w") as stderr:
        server = subprocess.Popen(
            [sys.executable, "-m", "caravan", "serve", str(model_path), *options],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            cwd=ROOT,
            env=environ,
        )
    assert server.stdout is not None
    try:
        line = ""
        while not line.startswith("Ready"):
            line = server.stdout.readline()
            assert line, stderr_path.read_text()[-2000:]
        url = line.split()[1]
        name = httpx.get(f"{url}/models", trust_env=False).json()["data"][0]["id"]
        body = {"model": name, "prompt": "Hello", "max_tokens": 4}
        answer = httpx.post(f"{url}/completions", json=body, timeout=60, trust_env=False)
        assert answer.status_code == 200, answer.text
    finally:
        server.terminate()
        server.wait(60)
        server.stdout.close()
    return set(re.findall(r"\| +([\w.]+)$", stderr_path.read_text(), re.MULTILINE))


@pytest.mark.slow
@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
def test_a_server_on_a_cpu_imports_nothing_for_gpus(tiny_model_path: Path, tmp_path: Path) -> None:
    modules = imported_modules(tiny_model_path, tmp_path / "stderr")
    assert {"torch", "caravan.scheduler.engine", "caravan.scheduler.loaded_model", "caravan.server.app"} <= modules
    assert {one for one in modules if one.startswith(FOR_GPUS)} == set()
