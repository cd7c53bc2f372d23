"""`caravan serve --standby`: an engine that is killed is replaced by a process that has the model loaded."""

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.extent import extent, only_in_full
from tests.support.gguf_files import write_tiny_llama
from tests.support.running_server import RunningServer, is_alive, running_server
from tests.support.waiting import eventually

pytestmark = pytest.mark.slow

OPTIONS = ("--kv-cache-memory", "4MiB", "--num-threads", "1")
BODY = {"model": "tiny", "prompt": "hello", "max_tokens": 1200, "temperature": 1.0, "ignore_eos": True}
START_SECONDS = 120.0


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model with room for answers of seconds: an engine is killed long before their end."""
    path = tmp_path_factory.mktemp("long") / "tiny.gguf"
    write_tiny_llama(path, metadata={"llama.context_length": 2048})
    return path


@pytest.fixture(scope="module")
def server(model_path: Path) -> Iterator[RunningServer]:
    with running_server(model_path, *OPTIONS, "--standby") as running:
        yield running


class Stream(threading.Thread):
    """A streamed completion, read in a thread."""

    def __init__(self, url: str, body: dict[str, Any]) -> None:
        super().__init__()
        self.text = ""
        self.times: list[float] = []  # of its events, time.monotonic()
        self._url, self._body = url, body
        self.start()

    def run(self) -> None:
        """Read to the end; see threading.Thread."""
        with httpx.stream(
            "POST", f"{self._url}/v1/completions", json=self._body | {"stream": True}, timeout=120, trust_env=False
        ) as response:
            for line in response.iter_lines():
                if line.startswith("data: {"):
                    self.times.append(time.monotonic())
                    self.text += "".join(choice["text"] for choice in json.loads(line[6:])["choices"])

    def longest_pause(self) -> float:
        """Return the longest time between two events."""
        return max(later - earlier for earlier, later in zip(self.times, self.times[1:], strict=False))


def streams(server: RunningServer, number: int) -> list[Stream]:
    """Return streams that have begun."""
    salt = str(time.monotonic())  # without draft tokens from earlier answers, which would end them at once
    started = [Stream(server.url, BODY | {"seed": seed, "cache_salt": salt}) for seed in range(number)]
    eventually(lambda: all(len(stream.times) > 3 for stream in started))
    return started


def text(server: RunningServer, seed: int) -> str:
    answer = server.http.post("/v1/completions", json=BODY | {"seed": seed}).json()
    return str(answer["choices"][0]["text"])


def wait_for_standby(server: RunningServer) -> int:
    """Return the process id of the standby when it is ready."""
    eventually(lambda: len(server.engine_pids()) == 2, within_seconds=START_SECONDS)
    standby = server.engine_pids()[1]
    with contextlib.suppress(OSError):  # with its low priority it may take a minute to load beside other tests
        Path(f"/proc/{standby}/autogroup").write_text("0")
    eventually(lambda: server.metric("standby_ready") == 1, within_seconds=START_SECONDS)
    assert server.engine_pids() == [server.engine_pid(), standby]
    return standby


def test_a_standby_takes_over_from_a_killed_engine(server: RunningServer) -> None:
    whole = [text(server, seed) for seed in range(4)]
    restarts = server.metric("engine_restarts_total")
    for count in range(1, 1 + extent(2, 1)):
        standby = wait_for_standby(server)
        running = streams(server, 4)
        os.kill(server.engine_pid(), signal.SIGKILL)
        for stream in running:
            stream.join()
        assert [stream.text for stream in running] == whole
        assert server.engine_pid() == standby
        assert server.metric("engine_restarts_total") == restarts + count
        assert server.metric("requests_replayed_total") >= 4 * count
        assert server.http.get("/readyz").status_code == 200


def test_the_engine_works_on_while_a_standby_is_replaced(server: RunningServer) -> None:
    restarts = server.metric("engine_restarts_total")
    standby, engine = wait_for_standby(server), server.engine_pid()
    running = streams(server, 2)
    os.kill(standby, signal.SIGKILL)
    eventually(lambda: server.metric("standby_ready") == 0)
    for stream in running:
        stream.join()
    assert [stream.text for stream in running] == [text(server, seed) for seed in range(2)]
    assert wait_for_standby(server) != standby
    assert server.engine_pid() == engine
    assert server.metric("engine_restarts_total") == restarts


def test_a_new_engine_is_started_when_both_processes_are_killed(server: RunningServer) -> None:
    whole = text(server, 0)
    pids = [wait_for_standby(server), server.engine_pid()]
    (stream,) = streams(server, 1)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    stream.join()
    assert stream.text == whole
    assert server.engine_pid() not in pids


@pytest.mark.parametrize("is_loaded", [pytest.param(True, marks=only_in_full()), False])
def test_threat_20_a_standby_ends_when_the_server_is_killed(model_path: Path, is_loaded: bool) -> None:
    with running_server(model_path, *OPTIONS, "--standby") as running:
        eventually(lambda: len(running.engine_pids()) == 2)
        if is_loaded:
            wait_for_standby(running)
        children = running.children()
        running.process.kill()
        eventually(lambda: not any(map(is_alive, children)))


def test_a_standby_takes_over_during_a_drain_and_ends_with_the_server(model_path: Path) -> None:
    with running_server(model_path, *OPTIONS, "--standby") as running:
        wait_for_standby(running)
        whole, (stream,) = text(running, 0), streams(running, 1)
        children = running.children()
        os.kill(running.engine_pid(), signal.SIGKILL)
        running.process.terminate()
        stream.join()
        assert stream.text == whole
        children += running.children()
        assert running.process.wait(60) == 0
        assert not any(map(is_alive, children))


@pytest.mark.timing
def test_streams_pause_for_a_shorter_time_with_a_standby(server: RunningServer, model_path: Path) -> None:
    pauses: list[float] = []
    with running_server(model_path, *OPTIONS) as alone:
        for one in (alone, server):
            if one is server:
                wait_for_standby(one)
            running = streams(one, 4)
            os.kill(one.engine_pid(), signal.SIGKILL)
            for stream in running:
                stream.join()
            pauses.append(max(stream.longest_pause() for stream in running))
    assert pauses[1] < 0.5
    assert pauses[1] < pauses[0] / 2
