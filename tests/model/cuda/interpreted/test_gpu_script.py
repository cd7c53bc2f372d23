"""The script for a GPU, at tiny sizes in the interpreter: each part prints a line, and no result is wrong."""

import gzip
import json
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu, gpu_streams
from benchmarks.gpu_part import published
from benchmarks.gpu_sizes import TINY, Sizes
from benchmarks.gpu_streams import StepTimes, Variant
from benchmarks.gpu_trace import spans_of, summary
from caravan.model.cuda.llama import CudaLlama
from caravan.scheduler.engine import Engine
from tests.support.extent import only_in_full

pytestmark = pytest.mark.proofs


@only_in_full()  # the two below run single parts
@pytest.mark.timeout(900)  # 30 seconds on a core of its own
def test_each_part_prints_a_line_with_results_that_are_right(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert gpu.run_parts(list(gpu.PARTS), 800, tmp_path, is_tiny=True)
    lines = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    for part, line in zip(gpu.PARTS, lines, strict=True):
        assert (line["part"], line["state"], line["wrong"]) == (part, "complete", 0)
        assert line["results"]
        assert "error" not in line
    found = {line["part"]: line["results"] for line in lines}
    assert len(found["kernels"]) > 20
    assert all(result["is_right"] for result in found["kernels"] + found["equal bits"])
    for part in ("engine bf16", "engine int4"):
        assert {result["streams"] for result in found[part] if "streams" in result} == {1, 2}
        assert all(result["tokens_per_second"] > 0 for result in found[part] if "streams" in result)
    assert json.loads(gzip.decompress((tmp_path / found["trace"][0]["file"]).read_bytes()))["traceEvents"]


def test_a_part_that_fails_is_a_line_and_the_next_part_still_runs(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "PARTS", {"no such part": 1.0, "environment": 1.0})
    assert not gpu.run_parts(["no such part", "environment"], 200, tmp_path, is_tiny=True)
    failed, environment = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert (failed["state"], failed["error"], failed["results"]) == ("failed", "KeyError: 'no such part'", [])
    assert environment["state"] == "complete"


@pytest.mark.usefixtures("as_on_a_gpu")
def test_each_variant_of_the_engine_is_a_result_and_has_the_memory_of_the_one_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pools: list[weakref.ref[torch.Tensor]] = []
    make = gpu_streams.make_engine

    def observed(model: CudaLlama, sizes: Sizes, variant: Variant, times: StepTimes) -> Engine:
        assert not any(pool() is not None for pool in pools), "two KV pools at once"
        engine = make(model, sizes, variant, times)
        pools.append(weakref.ref(engine.kv_cache.keys[0]))
        if variant.name == "neither":
            raise torch.OutOfMemoryError("no memory for this one")
        return engine

    monkeypatch.setattr(gpu_streams, "make_engine", observed)
    sizes = replace(TINY, streams=(1,), context=4, decode_steps=1)
    found = [*gpu_streams.measure_bf16(sizes, None)]
    assert len(pools) == len(gpu_streams.variants(sizes)) == 3
    failed = [result for result in found if "failed" in result]
    assert [(one["variant"], one["error"]) for one in failed] == [
        ("neither", "OutOfMemoryError: no memory for this one")
    ]
    measured = [result["variant"] for result in found if "streams" in result]
    assert measured == [variant.name for variant in gpu_streams.variants(sizes) if variant.name != "neither"]


def test_a_part_without_time_is_cut(tmp_path: Path) -> None:
    line = gpu.run_part("kernels", 0.01, tmp_path, is_tiny=True)
    assert (line["state"], line["limit"], line["results"]) == ("cut", 0.0, [])


def test_results_that_came_before_a_fault_are_kept() -> None:
    assert gpu.read_results('{"a": 1}\nhello\n3\n{"b": 2}\n{"c": ') == [{"a": 1}, {"b": 2}]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_script_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    reason = gpu.obstacle()
    assert reason is not None
    assert "--tiny" in reason


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("NVIDIA H200", "H200"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA A100-SXM4-40GB", None),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA H200 NVL", None),
        ("NVIDIA GH200 480GB", None),
        ("", None),
    ],
)
def test_published_figures_are_found_by_the_name_of_the_gpu(name: str, expected: str | None) -> None:
    found = published(name)
    assert (found.name if found else None) == expected


def test_a_trace_is_summed_up_in_kernels_and_gaps() -> None:
    def event(name: str, start: float, duration: float, category: str = "kernel") -> dict[str, Any]:
        return {"name": name, "ts": start, "dur": duration, "cat": category, "ph": "X"}

    events = [event("b", 30, 10), event("a", 10, 10), event("host", 0, 100, "cpu_op"), event("c", 35, 15)]
    found = summary(spans_of(events, frozenset({"kernel"})), 2)
    assert (found["launches"], found["busy_us"], found["gaps_us"]) == (1.5, 15.0, 5.0)
    assert (found["median_gap_us"], found["longest_gaps_us"]) == (10.0, [10.0])
    assert found["kernels"][0] == ["c", 0.5, 7.5]
    with pytest.raises(ValueError, match="no kernels"):
        summary([], 2)
