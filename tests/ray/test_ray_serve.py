"""Replicas on a real cluster of Ray. `make ray-test` runs these where Ray can reach nothing but itself."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.alone import is_alone
from tests.support.gguf_files import write_tiny_llama
from tests.support.ray_replicas import (
    TINY,
    actor_pids,
    deploy,
    engine_pids,
    ray_cluster,
    server_of_replicas,
    write_config,
)
from tests.support.running_server import RunningServer

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed: `make ray-test`"),
    pytest.mark.skipif(not is_alone(), reason="Ray would listen on all interfaces: `make ray-test`"),
]

BODY = {"model": "tiny", "max_tokens": 200, "ignore_eos": True, "temperature": 0.8}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("r")  # a short path: Ray puts sockets into it


@pytest.fixture(scope="module")
def model(folder: Path) -> Path:
    path = folder / "tiny.gguf"
    write_tiny_llama(path)
    return path


@pytest.fixture(scope="module")
def environ(folder: Path, model: Path) -> Iterator[dict[str, str]]:
    with ray_cluster(folder) as environ:
        scale(folder, model, environ, num_replicas=2)
        yield environ


@pytest.fixture(scope="module")
def server(model: Path, environ: dict[str, str]) -> Iterator[RunningServer]:
    with server_of_replicas(model, environ, "--served-model-name", "tiny") as server:
        yield server


def scale(folder: Path, model: Path, environ: dict[str, str], **options: Any) -> str:
    """Deploy with other options of the deployment; the arguments, and so the replicas, stay."""
    return deploy(write_config(folder / "config.yaml", TINY | {"model": str(model)}, **options), environ)


def until(holds: Callable[[], bool], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not come to hold"
        time.sleep(0.1)


def num_connected(server: RunningServer) -> float:
    return server.metric("replicas_connected")


async def streams(url: str, num: int) -> list[str]:
    """Return the texts of streams that run at the same time, each with a prompt and a seed of its own."""
    async with httpx.AsyncClient(base_url=url, timeout=240, trust_env=False) as http:

        async def text(seed: int) -> str:
            body = BODY | {"prompt": f"number {seed}", "seed": seed, "stream": True}
            lines = (await http.post("/v1/completions", json=body)).text.split("\n\n")
            assert lines[-2] == "data: [DONE]", lines[-3:]
            events = [json.loads(line.removeprefix("data: ")) for line in lines[:-2] if line]
            assert all("error" not in event for event in events), events
            return "".join(event["choices"][0]["text"] for event in events if event["choices"])

        return await asyncio.gather(*map(text, range(num)))


def texts_during(server: RunningServer, num: int, harm: Callable[[], object]) -> list[str]:
    """Return the texts of streams while harm is done."""

    async def run() -> list[str]:
        task = asyncio.create_task(streams(server.url, num))
        before = server.metric("generation_tokens_total")
        while server.metric("generation_tokens_total") < before + 5 * num:
            await asyncio.sleep(0.05)
        await asyncio.to_thread(harm)
        return await task

    return asyncio.run(run())


def test_the_api_process_serves_and_names_its_replicas(server: RunningServer) -> None:
    until(lambda: num_connected(server) == 2)
    answer = server.http.post("/v1/completions", json=BODY | {"prompt": "hello"}).json()
    timeline = server.http.get(f"/v1/requests/{answer['id']}/explain").json()["timeline"]
    (routed,) = (event for event in timeline if event["event"] == "routed")
    assert f'replica="{routed["replica"]}"' in server.metrics()
    assert "_ray_timestamp_ns" not in server.start_text


@pytest.mark.parametrize("pids", [engine_pids, actor_pids], ids=["engine", "actor"])
def test_streams_go_on_when_an_engine_or_its_actor_is_killed(
    server: RunningServer, pids: Callable[[], list[int]]
) -> None:
    until(lambda: num_connected(server) == 2)
    undisturbed = asyncio.run(streams(server.url, 8))
    replayed = server.metric("requests_replayed_total")
    assert texts_during(server, 8, lambda: os.kill(pids()[0], signal.SIGKILL)) == undisturbed
    assert server.metric("requests_replayed_total") > replayed
    until(lambda: num_connected(server) == 2)


def test_scaling_down_finishes_or_moves_the_requests(
    server: RunningServer, folder: Path, model: Path, environ: dict[str, str]
) -> None:
    until(lambda: num_connected(server) == 2)
    undisturbed = asyncio.run(streams(server.url, 8))
    texts = texts_during(server, 8, lambda: scale(folder, model, environ, num_replicas=1))
    assert texts == undisturbed
    until(lambda: num_connected(server) == 1 and len(engine_pids()) == 1)
    scale(folder, model, environ, num_replicas=2)
    until(lambda: num_connected(server) == 2)


def test_queued_tokens_start_replicas_and_an_idle_application_ends_them(
    server: RunningServer, folder: Path, model: Path, environ: dict[str, str]
) -> None:
    policy = {
        "policy_function": "caravan.server.ray_app:QueuedTokens",
        "policy_kwargs": {"queued_tokens": 200, "requests": 4},
    }
    autoscaling = {
        "min_replicas": 1,
        "max_replicas": 2,
        "upscale_delay_s": 0,
        "downscale_delay_s": 1,
        "metrics_interval_s": 0.5,
        "look_back_period_s": 1,
        "policy": policy,
    }
    scale(folder, model, environ, autoscaling_config=autoscaling, num_replicas="auto")
    until(lambda: num_connected(server) == 1)

    def wait_for_two() -> None:
        until(lambda: num_connected(server) == 2)

    assert len(texts_during(server, 60, wait_for_two)) == 60
    until(lambda: num_connected(server) == 1)
    scale(folder, model, environ, num_replicas=2)


def test_threat_36_a_wrong_token_reaches_no_replica(model: Path, environ: dict[str, str]) -> None:
    command = [sys.executable, "-m", "caravan", "serve", str(model), "--engines", "ray://caravan", "--port", "0"]
    wrong = environ | {"RAY_AUTH_TOKEN": "another-token-0123456789abcdef0123456"}
    done = subprocess.run(command, env=wrong, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 1
    assert "There is no cluster of Ray at RAY_ADDRESS" in done.stderr.splitlines()[-1]
