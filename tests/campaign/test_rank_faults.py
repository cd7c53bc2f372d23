"""No request is lost or changed when a rank of a model is killed under load."""

from pathlib import Path

import pytest

from tests.campaign.engine_faults import any_rank, fault_campaign
from tests.campaign.streams import short_bodies
from tests.support.extent import extent
from tests.support.running_server import is_alive, running_server
from tests.support.waiting import eventually

pytestmark = pytest.mark.slow

OPTIONS = [
    "--served-model-name",
    "smollm2",
    "--kv-cache-memory",
    "4MiB",
    "--tensor-parallel",
    "2",
    "--num-threads",
    "1",
]


async def test_killed_ranks_lose_no_requests_and_change_no_output(tiny_model_path: Path) -> None:
    num_kills = extent(4, 2)
    with running_server(tiny_model_path, *OPTIONS) as server:
        assert "Ranks    2 processes" in server.start_text
        before = server.rank_pids()
        assert len(before) == 2
        report = await fault_campaign(
            server, num_kills=num_kills, num_stops=0, seed=1, bodies=short_bodies(8), victims=any_rank
        )
        assert report.wrong == []
        assert report.num_harmed.keys() == {0, 1}
        assert report.num_answers >= 8
        assert server.metric("engine_restarts_total") == num_kills
        assert not any(map(is_alive, before))
        eventually(lambda: server.metric("kv_cache_usage_perc") == 0)
