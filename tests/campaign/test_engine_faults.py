"""No request is lost or changed when the engine is killed or stopped under load."""

from pathlib import Path

import pytest

from tests.campaign.engine_faults import fault_campaign
from tests.support.extent import extent
from tests.support.running_server import running_server
from tests.support.waiting import eventually

pytestmark = pytest.mark.real_model


async def test_killed_or_stopped_engines_lose_no_requests_and_change_no_output(real_model_path: Path) -> None:
    num_kills, num_stops = extent(4, 2), extent(2, 1)
    options = ["--served-model-name", "smollm2", "--max-model-len", "1024", "--kv-cache-memory", "256MiB"]
    with running_server(real_model_path, *options, "--engine-timeout", "2") as server:
        report = await fault_campaign(server, num_kills=num_kills, num_stops=num_stops, seed=1)
        assert report.wrong == []
        assert report.num_answers >= 32
        assert server.metric("engine_restarts_total") == num_kills + num_stops
        assert server.metric("requests_replayed_total") > 16
        eventually(lambda: server.metric("kv_cache_usage_perc") == 0)
