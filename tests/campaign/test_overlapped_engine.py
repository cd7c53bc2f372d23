"""Short campaigns of faults and of a tiny pool, with an engine whose steps overlap on a device that is a thread."""

from pathlib import Path

import pytest

from tests.campaign.engine_faults import fault_campaign
from tests.campaign.tiny_pool import OPTIONS, answers_alone, requests_of_all_kinds, tiny_pool_campaign
from tests.support.extent import extent, only_in_full
from tests.support.running_server import RunningServer, command_of, running_server
from tests.support.waiting import eventually

pytestmark = pytest.mark.real_model

PROGRAM = "tests.campaign.overlapped_server"
NAME = ["--served-model-name", "smollm2"]


def overlaps(server: RunningServer) -> bool:
    return "tests.campaign.overlapped_process" in command_of(server.engine_pid())


async def test_requests_of_all_kinds_in_a_tiny_pool_with_crashes_equal_those_of_a_serial_engine(
    real_model_path: Path,
) -> None:
    num_kills = extent(2, 1)
    requests = requests_of_all_kinds(extent(30, 20))
    with running_server(real_model_path, *NAME, *OPTIONS) as server:
        expected = await answers_alone(server, requests)
    with running_server(real_model_path, *NAME, *OPTIONS, "--speculation", "off", program=PROGRAM) as server:
        assert overlaps(server)
        report = await tiny_pool_campaign(server, requests, expected, num_kills=num_kills, seed=1)
        assert report.wrong == []
        assert report.num_kills == num_kills
        assert report.num_preemptions > 0
        assert report.num_replayed > 0
        eventually(lambda: server.metric("kv_cache_usage_perc") == 0)


@only_in_full()  # the one above kills such an engine, too
async def test_a_killed_or_stopped_engine_with_steps_on_the_device_loses_no_request(real_model_path: Path) -> None:
    options = [*NAME, "--max-model-len", "1024", "--kv-cache-memory", "256MiB", "--engine-timeout", "2"]
    with running_server(real_model_path, *options, "--speculation", "off", program=PROGRAM) as server:
        assert overlaps(server)
        report = await fault_campaign(server, num_kills=2, num_stops=1, seed=1)
        assert report.wrong == []
        assert report.num_answers >= 32
        assert server.metric("engine_restarts_total") == 3
        eventually(lambda: server.metric("kv_cache_usage_perc") == 0)
