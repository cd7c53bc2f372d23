"""Threat 11: clients that disconnect free all resources."""

from pathlib import Path

import pytest

from tests.campaign.cuts import cut_campaign
from tests.support.running_server import running_server

pytestmark = pytest.mark.slow


async def test_threat_11_requests_that_are_cut_at_random_times_leak_no_blocks(tiny_model_path: Path) -> None:
    with running_server(tiny_model_path, "--kv-cache-memory", "256KiB") as server:
        before = server.http.post("/v1/completions", json={"model": "tiny", "prompt": "x", "temperature": 0}).json()
        report = await cut_campaign(server, num_cuts=400, seed=3)
        assert (report.num_cuts, report.leaked_blocks, report.num_running) == (400, 0, 0)
        assert min(report.num_in_request, report.num_in_answer) > 20
        after = server.http.post("/v1/completions", json={"model": "tiny", "prompt": "x", "temperature": 0}).json()
        assert after["choices"] == before["choices"]
        assert server.metric("engine_restarts_total") == 0
