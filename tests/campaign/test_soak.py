"""Memory does not grow with the number of requests, and a leak is detected."""

import random
from pathlib import Path

import pytest

from tests.campaign.soak import Slope, slope_of, soak
from tests.support.extent import only_in_full
from tests.support.running_server import running_server

pytestmark = pytest.mark.slow


async def test_the_memory_of_a_server_does_not_grow(tiny_model_path: Path) -> None:
    with running_server(tiny_model_path, "--kv-cache-memory", "1MiB") as server:
        slopes = await soak(server, num_requests=4000)
        print(slopes)
        assert slopes["API process"].is_flat
        assert slopes["engine process"].is_flat


@only_in_full()  # `test_a_leak_of_two_kilobytes_is_detected_despite_noise` judges made-up memory
async def test_a_leak_is_detected(tiny_model_path: Path) -> None:
    options = ["--kv-cache-memory", "1MiB", "--served-model-name", "tiny"]
    with running_server(tiny_model_path, *options, program="tests.campaign.leaky_server") as server:
        slopes = await soak(server, num_requests=2000)
        print(slopes)
        assert not slopes["API process"].is_flat
        assert slopes["engine process"].is_flat


@pytest.mark.parametrize("leak", [0, 500, 2000, 20_000])
def test_a_leak_of_two_kilobytes_is_detected_despite_noise(leak: int) -> None:
    dice = random.Random(leak)
    level, samples = 0.0, []
    for number in range(3000, 10_000, 50):
        level = 0.9 * level + dice.gauss(0, 200_000)  # allocators breathe
        samples.append((float(number), 1e8 + leak * number + level))
    assert slope_of(samples).is_flat == (leak < 1000)


def test_constant_memory_is_not_a_leak() -> None:
    assert Slope(999, 1).is_flat
    assert Slope(5000, 6000).is_flat
    assert not Slope(5000, 3000).is_flat
    assert Slope(-5000, 100).is_flat
