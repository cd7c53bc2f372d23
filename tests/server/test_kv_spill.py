"""`caravan serve --kv-spill`: a restarted server finds the prompts of the one before."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.running_server import RunningServer, running_server
from tests.support.waiting import eventually

pytestmark = pytest.mark.slow

BODY = {"prompt": [*range(5, 105)], "max_tokens": 8, "logprobs": 1, "temperature": 0.9, "seed": 3}


def ask(server: RunningServer) -> dict[str, Any]:
    name = server.http.get("/v1/models").json()["data"][0]["id"]
    answer: dict[str, Any] = server.http.post("/v1/completions", json=BODY | {"model": name}).json()
    return answer


def spilled_blocks(server: RunningServer, event: str) -> float:
    found = re.search(rf'^caravan_kv_spill_blocks_total\{{event="{event}".*\}} (\S+)$', server.metrics(), re.MULTILINE)
    assert found
    return float(found[1])


def test_a_restarted_server_finds_the_prompt_of_the_one_before(tiny_model_path: Path, tmp_path: Path) -> None:
    options = ("--kv-spill", "1MiB", "--kv-spill-path", str(tmp_path / "kv"), "--kv-cache-memory", "4MiB")
    with running_server(tiny_model_path, *options) as server:
        first = ask(server)
        eventually(lambda: spilled_blocks(server, "written") >= 6)
    with running_server(tiny_model_path, *options) as server:
        second = ask(server)
        explained = server.http.get(f"/v1/requests/{second['id']}/explain").json()
        assert spilled_blocks(server, "read") == 6
    assert first["choices"] == second["choices"]
    assert first["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    assert second["usage"]["prompt_tokens_details"]["cached_tokens"] == 96
    (read,) = [event for event in explained["timeline"] if event["event"] == "read from file"]
    assert read["tokens"] == 96


def test_a_file_that_cannot_be_created_is_named_at_the_start(tiny_model_path: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "caravan", "serve", str(tiny_model_path), "--port", "0", "--kv-spill", "1MiB"]
    command += ["--kv-spill-path", str(tmp_path / "none/kv")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    assert "none/kv cannot be used: No such file or directory." in done.stderr
    assert "Traceback" not in done.stderr
