"""Requests in a tiny pool with crashes give the same bits as alone."""

from pathlib import Path

import pytest

from tests.campaign.tiny_pool import OPTIONS, answers_alone, requests_of_all_kinds, tiny_pool_campaign
from tests.support.extent import extent
from tests.support.running_server import running_server
from tests.support.waiting import eventually

pytestmark = pytest.mark.real_model


async def test_requests_in_a_tiny_pool_with_crashes_equal_their_solo_runs(real_model_path: Path) -> None:
    num_kills = extent(3, 2)
    requests = requests_of_all_kinds(extent(45, 25))
    with running_server(real_model_path, "--served-model-name", "smollm2", *OPTIONS) as server:
        expected = await answers_alone(server, requests)
        report = await tiny_pool_campaign(server, requests, expected, num_kills=num_kills, seed=1)
        assert report.wrong == []
        assert report.num_kills == num_kills
        assert report.num_preemptions > 0
        assert report.num_replayed > 0
        eventually(lambda: server.metric("kv_cache_usage_perc") == 0)
