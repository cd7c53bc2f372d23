"""Memory and processor time of the engine process, and what runs, as metrics."""

import os
import subprocess
import sys
import time

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from caravan.server.observe.build_info import add_build_info
from caravan.server.observe.engine_usage import EngineUsage, process_usage
from tests.support.waiting import eventually


def exposed(pid: int | None) -> dict[str, float]:
    registry = CollectorRegistry()
    EngineUsage(registry, "m", lambda: pid)
    lines = generate_latest(registry).decode().splitlines()
    return {line.split()[0]: float(line.split()[1]) for line in lines if not line.startswith("#")}


def test_the_use_of_a_process_is_read_at_each_scrape() -> None:
    values = exposed(os.getpid())
    assert values['caravan_engine_resident_memory_bytes{model_name="m"}'] > 10_000_000
    before = values['caravan_engine_cpu_seconds_total{model_name="m"}']
    ends_at = time.process_time() + 0.05
    while time.process_time() < ends_at:
        pass
    assert exposed(os.getpid())['caravan_engine_cpu_seconds_total{model_name="m"}'] > before


def test_without_an_engine_there_is_no_sample() -> None:
    assert exposed(None) == {}
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        ended.wait()
        pid = ended.pid
    assert exposed(pid) == {}


@pytest.mark.slow
def test_ranks_are_children_of_the_engine_and_count() -> None:
    program = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'input()'])"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE) as parent:

        def num_bytes(*, has_children: bool) -> int:
            usage = process_usage(parent.pid, has_children=has_children)
            assert usage is not None
            return usage[0]

        eventually(lambda: num_bytes(has_children=True) > 1.5 * num_bytes(has_children=False))
        parent.communicate(b"\n")


def test_the_build_is_one_series() -> None:
    registry = CollectorRegistry()
    add_build_info(registry, "m", version="1.2", quantization="int8", kv_cache_dtype="auto", device="cpu")
    (line,) = (line for line in generate_latest(registry).decode().splitlines() if not line.startswith("#"))
    assert line.startswith("caravan_build_info{")
    assert line.endswith("} 1.0")
    for label in ('model_name="m"', 'version="1.2"', 'quantization="int8"', 'kv_cache_dtype="auto"', 'device="cpu"'):
        assert label in line
