"""A server whose clients lose connections: engines that end, preemption, shutdowns, the client of docs/api.md."""

import json
import re
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.cutting_proxy import cutting_proxy
from tests.support.resuming_client import RESUME, text_of, whole_events
from tests.support.running_server import RunningServer, running_server
from tests.support.waiting import eventually

pytestmark = pytest.mark.slow

LONG = {"model": "tiny", "prompt": "hello", "max_tokens": 400, "ignore_eos": True, "temperature": 1.0, "seed": 7}
API_PAGE = Path(__file__).parents[3] / "docs" / "api.md"

Events = Callable[[httpx.Client, str, dict[str, Any]], Iterator[str]]


@pytest.fixture(scope="module")
def server(tiny_model_path: Path) -> Iterator[RunningServer]:
    with running_server(tiny_model_path, "--kv-cache-memory", "256KiB") as running:
        yield running


def port_of(server: RunningServer) -> int:
    port = httpx.URL(server.url).port
    assert port is not None
    return port


def cut_after(server: RunningServer, name: str, body: dict[str, Any], num_bytes: int) -> None:
    """Send a resumable request and close the connection after some bytes of the response."""
    content = json.dumps(body).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nx-request-id: {name}\r\nx-caravan-resume: 1\r\n"
    head += f"content-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port_of(server))) as connection:
        connection.sendall(head.encode() + content)
        received = 0
        while received < num_bytes:
            received += len(connection.recv(min(4096, num_bytes - received)))


def read(server: RunningServer, name: str, after: int = 0) -> list[tuple[int, str]]:
    response = server.http.get(f"/v1/requests/{name}/stream", params={"after": after})
    assert response.status_code == 200, response.text
    return whole_events(response.text)


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> Events:
    """The function that docs/api.md shows."""
    (block,) = re.findall(r"^```python\n(.*?)^```", API_PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {}
    exec(block, names)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    function: Events = names["events"]
    return function


def test_the_client_of_the_page_gets_every_event_over_connections_that_are_cut(
    server: RunningServer, events: Events
) -> None:
    body = LONG | {"stream": True}
    whole = server.http.post("/v1/completions", json=LONG).json()["choices"][0]["text"]
    cuts = [600, 301, 900, 1, 777, 1500]
    with cutting_proxy(port_of(server), cuts) as proxy, httpx.Client(base_url=proxy.url, timeout=60) as client:
        got = [*events(client, "/v1/completions", body)]
        assert proxy.num_connections == len(cuts) + 1
    assert got.pop() == "[DONE]"
    assert "".join(json.loads(data)["choices"][0]["text"] for data in got) == whole


def test_a_cut_stream_survives_the_end_of_the_engine(server: RunningServer) -> None:
    whole = server.http.post("/v1/completions", json=LONG).json()["choices"][0]["text"]
    restarts = server.metric("engine_restarts_total")
    cut_after(server, "killed", LONG | {"stream": True, "cache_salt": "again"}, 1000)
    server.kill_engine()
    events = read(server, "killed")
    assert text_of(events) == whole
    assert read(server, "killed", after=17) == events[17:]
    assert server.metric("engine_restarts_total") == restarts + 1
    assert server.metric("requests_replayed_total") >= 1


def test_cut_streams_that_are_preempted_are_the_undisturbed_ones(server: RunningServer) -> None:
    bodies = [LONG | {"seed": seed} for seed in range(6)]
    alone = [server.http.post("/v1/completions", json=body).json()["choices"][0]["text"] for body in bodies]
    preemptions = server.metric("num_preemptions_total")
    with ThreadPoolExecutor(6) as pool:
        names = [f"preempted-{body['seed']}" for body in bodies]
        for name, body in zip(names, bodies, strict=True):
            pool.submit(cut_after, server, name, body | {"stream": True, "cache_salt": "again"}, 2000)
    together = [text_of(read(server, name)) for name in names]
    assert together == alone
    assert server.metric("num_preemptions_total") > preemptions


def test_a_client_that_comes_back_during_the_shutdown_gets_its_response(tiny_model_path: Path) -> None:
    with running_server(tiny_model_path, "--kv-cache-memory", "4MiB") as running:
        cut_after(running, "mine", LONG | {"stream": True}, 1000)
        running.process.terminate()
        eventually(lambda: running.http.get("/readyz").status_code == 503)
        events = read(running, "mine")
        assert events[-1][1] == "data: [DONE]"
        assert "error" not in events[-2][1]
        assert running.process.wait(60) == 0


def test_a_response_without_a_client_that_outlasts_the_drain_timeout_ends_with_an_error(tiny_model_path: Path) -> None:
    options = ("--kv-cache-memory", "4MiB", "--max-num-seqs", "4", "--drain-timeout", "0.3")
    with running_server(tiny_model_path, *options) as running:
        cut_after(running, "mine", LONG | {"stream": True, "n": 64}, 1000)
        with running.http.stream("GET", "/v1/requests/mine/stream") as response:
            lines = response.iter_lines()
            next(lines)
            running.process.terminate()
            events = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
        assert events[-1] == "[DONE]"
        assert json.loads(events[-2])["error"]["code"] == "unavailable"
        assert running.process.wait(60) == 0


def test_a_connection_is_free_for_other_requests_while_a_background_response_runs(server: RunningServer) -> None:
    body = {"model": "tiny", "input": "hi", "background": True, "max_output_tokens": 300, "ignore_eos": True}
    with httpx.Client(base_url=server.url, limits=httpx.Limits(max_connections=1), timeout=60) as client:
        queued = client.post("/v1/responses", json=body).json()
        assert queued["status"] == "queued"
        seen: set[str] = set()
        while not seen & {"completed", "incomplete", "failed"}:
            seen.add(client.get(f"/v1/responses/{queued['id']}").json()["status"])
        assert "in_progress" in seen
        assert "incomplete" in seen


def test_without_a_reader_a_response_ends_after_the_time_of_the_option(tiny_model_path: Path) -> None:
    with running_server(tiny_model_path, "--resume-seconds", "500ms") as running:
        body = LONG | {"stream": True, "n": 64}
        cut_after(running, "mine", body, 1000)
        assert running.metric("resumable_responses") == 1
        eventually(lambda: running.metric("resumable_responses") == 0)
        eventually(lambda: running.metric("num_requests_running") == 0)
        assert running.http.get("/v1/requests/mine/stream").status_code == 404
        assert running.http.post("/v1/completions", json=LONG | {"stream": True}, headers=RESUME).status_code == 200
