"""Twelve bodies of 8 MB at once take bounded memory, and health is answered meanwhile."""

import sys
from pathlib import Path

import pytest

from tests.campaign.body_flood import flood, large_bodies
from tests.server.running_server import running_server

pytestmark = [pytest.mark.timing, pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")]


@pytest.mark.parametrize("kind", large_bodies())
async def test_threat_28_large_bodies_at_once_take_bounded_memory_and_time(kind: str, tiny_model_path: Path) -> None:
    with running_server(tiny_model_path, "--kv-cache-memory", "4MiB") as server:
        server.http.post("/v1/completions", json={"model": "tiny", "prompt": "hi", "max_tokens": 1})
        report = await flood(server, kind, large_bodies()[kind], num_rounds=2)
        print(report)
        assert set(report.statuses) <= {200, 400, 429}
        assert report.grown_bytes < 256 * 2**20  # 2 GB, when bodies were decoded whole
        assert report.live_p99_seconds < 0.25  # 0.1 in the campaign; this shares its cores
        assert server.http.get("/readyz").status_code == 200
        assert server.metric("engine_restarts_total") == 0
