"""A server with a tiny model: a killed engine does not change a stream of lines, and a sleeping model can be loaded."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import ollama
import pytest

from tests.support.running_server import RunningServer, running_server
from tests.support.waiting import eventually

pytestmark = pytest.mark.slow

NUM_TOKENS = 300


def a_long_answer(server: RunningServer) -> tuple[dict[str, Any], str]:
    """Return a request whose answer has all tokens that it may have, and the answer."""
    for seed in range(30):
        options = {"num_predict": NUM_TOKENS, "temperature": 1.0, "seed": seed}
        body = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "options": options}
        answer = server.http.post("/api/chat", json=body | {"stream": False}).json()
        if answer["eval_count"] == NUM_TOKENS:
            return body, answer["message"]["content"]
    raise AssertionError("no seed gives a long answer")


def test_a_stream_survives_the_kill_of_its_engine(tiny_model_path: Path) -> None:
    with running_server(tiny_model_path, "--kv-cache-memory", "256KiB") as server:
        body, whole = a_long_answer(server)
        engine_pid = server.engine_pid()
        again = body | {"cache_salt": "again", "explain": True}  # without draft tokens from the answer above
        with server.http.stream("POST", "/api/chat", json=again) as response:
            lines = response.iter_lines()
            parts = [json.loads(next(lines))]
            os.kill(engine_pid, signal.SIGKILL)
            waited = server.http.post("/api/chat", json=body | {"stream": False})
            assert waited.json()["message"]["content"] == whole, "no request is refused meanwhile"
            parts += [json.loads(line) for line in lines]
        assert "".join(part["message"]["content"] for part in parts) == whole
        assert "engine replaced" in [one["event"] for one in parts[-1]["explanation"]["timeline"]]
        assert parts[-1]["eval_count"] == NUM_TOKENS


def test_a_request_without_a_prompt_wakes_a_sleeping_model(tiny_model_path: Path) -> None:
    options = ("--kv-cache-memory", "256KiB", "--sleep-after", "1")
    with running_server(tiny_model_path, *options) as server, ollama.Client(server.url, trust_env=False) as client:
        eventually(lambda: not client.ps().models)
        (listed,) = client.list().models
        assert listed.size is not None
        assert listed.size > 0
        loaded = client.generate("tiny")
        assert loaded.done_reason == "load"
        assert loaded.load_duration is not None
        assert loaded.load_duration > 10_000_000  # nanoseconds: a process has started
        assert server.metric("model_loads_total") == 1
