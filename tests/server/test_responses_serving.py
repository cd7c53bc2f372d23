"""A server with a tiny model: a call of a custom tool keeps to its pattern when the engine is killed in the middle."""

import json
import re
from pathlib import Path

import pytest

from tests.support.gguf_files import write_tiny_llama
from tests.support.running_server import running_server
from tests.support.waiting import eventually

pytestmark = pytest.mark.slow

DEFINITION = r"(?:[a-z]{3}\n){500}"  # seconds of work: the engine is killed long before its end
TOOL = {
    "type": "custom",
    "name": "edit",
    "format": {"type": "grammar", "syntax": "regex", "definition": DEFINITION},
}
BODY = {
    "model": "tiny",
    "input": "hello",
    "tools": [TOOL],
    "tool_choice": {"type": "custom", "name": "edit"},
    "temperature": 1.0,
    "seed": 7,
}


def test_a_call_of_a_custom_tool_survives_the_engine_and_its_client_may_leave(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    write_tiny_llama(path, metadata={"llama.context_length": 4096})
    with running_server(path, "--kv-cache-memory", "4MiB") as server:
        whole = server.http.post("/v1/responses", json=BODY).json()
        (call,) = whole["output"]
        assert re.fullmatch(DEFINITION, call["input"])
        again = BODY | {"stream": True, "cache_salt": "again"}
        with server.http.stream("POST", "/v1/responses", json=again) as response:
            lines = response.iter_lines()
            while "custom_tool_call_input.delta" not in next(lines):
                pass
            first = json.loads(next(lines).removeprefix("data: "))
            server.kill_engine()
            rest = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]
        deltas = [event["delta"] for event in [first, *rest] if event["type"].endswith("input.delta")]
        assert "".join(deltas) == call["input"]
        assert rest[-1]["type"] == "response.completed"
        assert server.metric("requests_replayed_total") == 1
        with server.http.stream("POST", "/v1/responses", json=again | {"ignore_eos": True}) as response:
            next(response.iter_lines())
        eventually(lambda: server.metric("num_requests_running") == 0)
        eventually(lambda: server.metric("kv_cache_usage_perc") == 0)
