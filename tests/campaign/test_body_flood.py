"""Twelve concurrent bodies of 8 MB take limited memory, and health checks stay fast."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.campaign.body_flood import flood, large_bodies, memory_bytes
from tests.support.running_server import RunningServer, running_server

pytestmark = [pytest.mark.timing, pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")]


@pytest.fixture(scope="module")
def server(tiny_model_path: Path) -> Iterator[RunningServer]:
    with running_server(tiny_model_path, "--kv-cache-memory", "4MiB") as running:
        running.http.post("/v1/completions", json={"model": "tiny", "prompt": "hi", "max_tokens": 1})
        yield running


@pytest.fixture(scope="module")
def fresh_bytes(server: RunningServer) -> int:
    """The memory of the API process before the first flood: later ones are compared with it."""
    return memory_bytes(server, "VmRSS")


@pytest.mark.parametrize("kind", large_bodies())
async def test_threat_28_concurrent_large_bodies_take_limited_memory_and_time(
    kind: str, server: RunningServer, fresh_bytes: int
) -> None:
    report = await flood(server, kind, large_bodies()[kind], num_rounds=2)
    grown_bytes = memory_bytes(server, "VmHWM") - fresh_bytes
    print(report, grown_bytes)
    assert set(report.statuses) <= {200, 400, 429}
    assert report.grown_bytes < 256 * 2**20  # 2 GB, when bodies were decoded whole
    assert grown_bytes < 256 * 2**20
    assert report.live_p99_seconds < 0.25  # 0.1 in the campaign; this shares its cores
    assert server.http.get("/readyz").status_code == 200
    assert server.metric("engine_restarts_total") == 0
