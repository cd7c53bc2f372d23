"""The report of `caravan serve --profile`."""

import re

import pytest
import torch

from caravan.model.cpu.build import load_kernels
from caravan.model.cpu.llama import CpuLlama
from caravan.model.loader import plain_llama
from caravan.scheduler.config import EngineConfig
from caravan.scheduler.engine import Engine
from caravan.scheduler.profile import PARTS, Profile
from tests.scheduler.requests import make_request
from tests.support.tiny_llama import MakeModel, tiny_llama

CONFIG = EngineConfig(num_blocks=64, max_model_len=256)


def run_profiled(make_model: MakeModel, dtype: torch.dtype) -> list[str]:
    """Return the reports of a short run."""
    reports: list[str] = []
    model = tiny_llama(dtype=dtype, make_model=make_model)
    profile = Profile(model, reports.append)
    engine = Engine(model, CONFIG, dtype, torch.device("cpu"), profile)
    engine.scheduler.add(make_request(1, list(range(50))))
    for _ in range(6):  # 4 with work, then heartbeats
        profile.start_step()
        stats = engine.step().stats
        profile.lap("commit")
        sum(range(1000))  # a part that takes less than half a microsecond has 0.000 ms
        profile.lap("send")
        profile.end_step(stats.num_prefill_tokens + stats.num_decode_tokens)
    profile.report()
    profile.report()
    return reports


def test_a_report_has_every_part_of_the_steps_that_had_work() -> None:
    (report,) = run_profiled(lambda config: CpuLlama(config, load_kernels(), "none"), torch.bfloat16)
    assert re.match(r"4 steps of [\d.]+ ms, 13\.2 tokens each\n", report)
    rows = {row[1]: (float(row[2]), float(row[3])) for row in re.finditer(r"  (\w+) +([\d.]+) ms +([\d.]+)%", report)}
    assert tuple(rows) == PARTS
    assert all(milliseconds > 0 for milliseconds, _ in rows.values())
    assert sum(share for _, share in rows.values()) == pytest.approx(100, abs=0.5)
    assert sum(milliseconds for milliseconds, _ in rows.values()) == pytest.approx(
        float(report.split(" ms")[0].split()[-1]), abs=0.02
    )


def test_a_model_in_plain_pytorch_is_one_part_of_the_report() -> None:
    (report,) = run_profiled(plain_llama, torch.float32)
    assert re.search(r"linears +0\.000 ms", report)
    assert not re.search(r"rest +0\.000 ms", report)
