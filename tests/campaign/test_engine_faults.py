"""No request is lost or changed when the engine is killed or stopped under load."""

from pathlib import Path

import pytest

from tests.campaign.engine_faults import fault_campaign
from tests.support.running_server import eventually, running_server

pytestmark = pytest.mark.real_model


async def test_17_killed_or_stopped_engines_lose_no_requests_and_change_no_output(real_model_path: Path) -> None:
    options = ["--served-model-name", "smollm2", "--max-model-len", "1024", "--kv-cache-memory", "256MiB"]
    with running_server(real_model_path, *options, "--engine-timeout", "2") as server:
        report = await fault_campaign(server, num_kills=4, num_stops=2, seed=1)
        assert report.wrong == []
        assert report.num_answers >= 32
        assert max(report.detection_seconds) < 2.5
        assert server.metric("engine_restarts_total") == 6
        assert server.metric("requests_replayed_total") > 32
        eventually(lambda: server.metric("kv_cache_usage_perc") == 0, within_seconds=2)
