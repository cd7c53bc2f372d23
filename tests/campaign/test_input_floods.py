"""Requests of one key that are slow to check or to tokenize hardly delay others."""

from pathlib import Path

import pytest

from tests.campaign.input_floods import KEYS, noticed, percentile, write_keys
from tests.support.extent import extent
from tests.support.running_server import running_server

pytestmark = [pytest.mark.real_model, pytest.mark.timing]

LIVE_P99_SECONDS = 0.1
PAUSE_SECONDS = 0.25
TWO_TOKENS_SECONDS = 1.0
SECONDS = extent(5, 3)
NUM_CLIENTS = 4


async def test_threat_27_and_29_floods_of_one_key_hardly_delay_others(real_model_path: Path, tmp_path: Path) -> None:
    options = ["--served-model-name", "smollm2", "--kv-cache-memory", "256MiB"]
    options += ["--api-key-file", str(write_keys(tmp_path / "keys"))]
    with running_server(real_model_path, *options) as server:
        server.http.headers["authorization"] = f"Bearer {KEYS['other']}"
        await noticed(server, "long texts", num_clients=0, seconds=1)  # the engine's first grammar takes a second
        quiet = await noticed(server, "long texts", num_clients=0, seconds=SECONDS)
        print("quiet:", quiet)
        # What a machine that is shared takes without a flood comes on top.
        limits = (
            LIVE_P99_SECONDS + percentile(quiet.live, 99),
            PAUSE_SECONDS + max(quiet.pauses),
            TWO_TOKENS_SECONDS + max(quiet.two_tokens),
        )
        for flood in ("long texts", "slow grammars"):
            for _ in range(3):  # it may itself stand still for a while; hardly three times
                notice = await noticed(server, flood, num_clients=NUM_CLIENTS, seconds=SECONDS)
                print(flood, notice)
                measured = percentile(notice.live, 99), max(notice.pauses), max(notice.two_tokens)
                assert notice.num_not_ready == 0, "a healthy engine was taken for silent"
                if all(seconds < limit for seconds, limit in zip(measured, limits, strict=True)):
                    break
            else:
                pytest.fail(f"{flood}: {measured} s, the limits are {limits}")
        assert server.metric("engine_restarts_total") == 0
