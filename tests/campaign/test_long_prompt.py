"""With a latency target, a long prompt does not pause running streams."""

from pathlib import Path

import pytest

from tests.campaign.long_prompt import pauses_beside_a_long_prompt
from tests.support.running_server import running_server

pytestmark = [pytest.mark.real_model, pytest.mark.timing]

TARGET_SECONDS = 0.1


async def test_a_prompt_of_4000_tokens_keeps_the_latency_of_8_streams_near_the_target(real_model_path: Path) -> None:
    options = ["--served-model-name", "smollm2", "--kv-cache-memory", "512MiB", "--max-inter-token-latency", "100ms"]
    options += ["--quantization", "int8"]  # the fastest for many rows
    with running_server(real_model_path, *options) as server:
        await pauses_beside_a_long_prompt(server)  # so that the price of a token is known
        alone = await pauses_beside_a_long_prompt(server, with_prompt=False)
        limit_seconds = 1.5 * TARGET_SECONDS + alone.percentile(50)  # a step more: on a slow machine it counts
        for _ in range(8):  # a shared machine may itself stand still for a while; hardly each time
            pauses = await pauses_beside_a_long_prompt(server)
            print(pauses.percentile(50), pauses.percentile(99), pauses.first_token_seconds)
            if pauses.percentile(99) < limit_seconds:
                break
        assert pauses.percentile(99) < limit_seconds
        assert pauses.first_token_seconds < 30
