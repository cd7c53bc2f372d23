"""No request is refused, lost or changed that arrives while the engine is killed, replaced or woken."""

from pathlib import Path

import pytest

from tests.campaign.arrivals import arrivals_campaign
from tests.campaign.input_floods import write_keys
from tests.support.extent import extent
from tests.support.running_server import running_server

pytestmark = pytest.mark.real_model

OPTIONS = ["--served-model-name", "smollm2", "--max-model-len", "512", "--kv-cache-memory", "64MiB"]


@pytest.mark.parametrize("options", [[], ["--standby"], ["--sleep-after", "0.5"]], ids=["plain", "standby", "sleeping"])
async def test_requests_that_arrive_while_the_engine_is_replaced_get_the_answers_of_their_solo_runs(
    options: list[str], real_model_path: Path, tmp_path: Path
) -> None:
    num_kills = extent(20, 2)
    keys = str(write_keys(tmp_path / "keys"))
    with running_server(real_model_path, *OPTIONS, *options, "--api-key-file", keys) as server:
        report = await arrivals_campaign(
            server,
            num_kills=num_kills,
            seed=1,
            has_standby="--standby" in options,
            is_sleeping="--sleep-after" in options,
        )
    assert report.wrong == []
    assert report.num_kills == num_kills
    assert 4 * num_kills <= report.num_arrived_meanwhile < report.num_answers
