"""The examples in Python of docs/clients.md run as they stand, each with the library that it shows."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients.environments import CLIENTS, NEWER_CLIENTS, client_variables
from tests.clients.examples import examples
from tests.support.running_server import RunningServer, running_server

pytestmark = [pytest.mark.real_model, pytest.mark.slow]

EXAMPLES = examples()


@pytest.fixture(scope="module")
def server(real_model_path: Path) -> Iterator[RunningServer]:
    options = ["--max-model-len", "1024", "--served-model-name", "smollm2", "--api-key", "dummy-key"]
    with running_server(real_model_path, *options) as running:
        yield running


@pytest.mark.parametrize("title", EXAMPLES)
def test_an_example_of_the_page_runs(title: str, server: RunningServer) -> None:
    python = NEWER_CLIENTS if title.startswith("pydantic-ai") else CLIENTS
    assert python.exists(), "Run `make .venv/clients.stamp`."
    done = subprocess.run(
        [python, "-c", EXAMPLES[title].replace("http://127.0.0.1:8000", server.url)],
        env=client_variables(),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.strip()
