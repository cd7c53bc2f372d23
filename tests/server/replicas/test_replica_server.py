"""A whole server in the test's event loop, over two replicas with engine processes without a model."""

import asyncio
import json
import os
import re
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from caravan.scheduler.messages import EngineSnapshot, StartEngine, StepStats
from caravan.server.replicas.engine_owner import EngineOwner
from caravan.server.serve import address_of, bind, run_replicas
from caravan.server.settings import load_settings
from tests.support.local_replica import LocalSource
from tests.support.waiting import until

pytestmark = pytest.mark.slow

SNAPSHOT = EngineSnapshot(
    stats=StepStats(),
    block_size=16,
    blocks_per_cell=1,
    cell_states=[0],
    running=[],
    waiting=[],
)
BODY = {"model": "tiny", "prompt": "hello", "max_tokens": 100}


@asynccontextmanager
async def serving(model: Path, **options: Any) -> AsyncIterator[tuple[httpx.AsyncClient, LocalSource]]:
    settings = load_settings({"model": str(model), "served_model_name": "tiny", "engines": "ray://x"} | options)
    program = ("-m", "tests.support.scripted_engine", "0.01")
    source = LocalSource(*(EngineOwner(StartEngine(model_path=""), program) for _ in range(2)))
    listener = bind("127.0.0.1", 0)
    task = asyncio.create_task(run_replicas(settings, model, source, listener, settings.load_keys()))
    async with httpx.AsyncClient(base_url=address_of(listener), timeout=20, trust_env=False) as http:
        await until(lambda: task.done() or len(source.replicas) == 2)
        try:
            async with asyncio.timeout(60):
                while not await has(http, 'replicas_connected{model_name="tiny"} 2.0'):
                    assert not task.done()
                    await asyncio.sleep(0.02)
            yield http, source
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.wait_for(task, 60)


async def has(http: httpx.AsyncClient, line: str) -> bool:
    """Return whether the metrics have a line; before the port is open they do not."""
    try:
        return line in (await http.get("/metrics")).text
    except httpx.ConnectError:
        return False


def sample(text: str, name: str) -> float:
    found = re.search(rf"^caravan_{re.escape(name)} (\S+)$", text, re.MULTILINE)
    assert found, name
    return float(found[1])


async def test_streams_metrics_and_explanations_of_two_replicas_under_a_kill(
    tiny_model_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with serving(tiny_model_path) as (http, source):
        undisturbed = (await http.post("/v1/completions", json=BODY)).json()
        posts = [asyncio.create_task(http.post("/v1/completions", json=BODY)) for _ in range(6)]
        await asyncio.sleep(0.4)
        text = (await http.get("/metrics")).text
        assert sample(text, 'num_requests_running{model_name="tiny"}') == sum(
            sample(text, f'replica_num_requests_running{{model_name="tiny",replica="{name}"}}') for name in ("r0", "r1")
        )
        os.kill(source.replicas[0].owner.pid, signal.SIGKILL)
        answers = [(await post).json() for post in posts]
        assert [one["choices"][0]["text"] for one in answers] == [undisturbed["choices"][0]["text"]] * 6
        text = (await http.get("/metrics")).text
        assert sample(text, 'replica_losses_total{model_name="tiny"}') == 1
        num_moved = sample(text, 'requests_replayed_total{model_name="tiny"}')
        assert num_moved > 0
        num_routed = sum(
            sample(text, f'replica_routed_requests_total{{by="{by}",model_name="tiny"}}') for by in ("load", "prefix")
        )
        assert num_routed == 7 + num_moved
        explanations = [(await http.get(f"/v1/requests/{one['id']}/explain")).json() for one in answers]
        events = [[event["event"] for event in one["timeline"]] for one in explanations]
        assert sum("replica lost" in one for one in events) == num_moved
        routed = [event for one in explanations for event in one["timeline"] if event["event"] == "routed"]
        assert {event["replica"] for event in routed} == {"r0", "r1"}
        assert all(event["known_tokens"] % 16 == 0 for event in routed)
    assert "64 run at once" in capsys.readouterr().out


async def test_the_live_view_shows_a_lost_replica(tiny_model_path: Path) -> None:
    async with (
        serving(tiny_model_path) as (http, source),
        http.stream("GET", "/v1/engine/events") as response,
    ):
        lines = response.aiter_lines()
        assert await anext(lines) == ": hello"
        os.kill(source.replicas[0].owner.pid, signal.SIGKILL)
        owner = source.replicas[1].owner
        async with asyncio.timeout(60):
            while not await has(http, 'replica_losses_total{model_name="tiny"} 1.0'):
                await asyncio.sleep(0.02)
        owner._on_message(SNAPSHOT)
        async for line in lines:
            if line.startswith("data: "):
                view = json.loads(line.removeprefix("data: "))
                assert "replica r0 was lost" in [event["text"] for event in view["events"]]
                break


async def test_the_limit_of_requests_grows_with_the_replicas(tiny_model_path: Path) -> None:
    async with serving(tiny_model_path, max_queued_requests=1) as (http, _):
        bodies = [BODY | {"max_tokens": 5} for _ in range(100)]  # more than one replica of 64 sequences takes
        answers = await asyncio.gather(*(http.post("/v1/completions", json=body) for body in bodies))
        assert {answer.status_code for answer in answers} == {200}
