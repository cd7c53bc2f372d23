"""A model that is loaded for an engine or a standby, and the cache of its packed weights."""

import dataclasses
import functools
import logging
import time
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
import torch

from caravan.model.checkpoint.checkpoint import Checkpoint
from caravan.model.cpu.weights_cache import WeightsCache
from caravan.model.loader import open_checkpoint
from caravan.scheduler import loaded_model, overlapped_engine
from caravan.scheduler.config import EngineConfig
from caravan.scheduler.engine import Engine
from caravan.scheduler.grammar import Grammars
from caravan.scheduler.loaded_model import load
from caravan.scheduler.messages import StartEngine
from caravan.scheduler.overlapped_engine import OverlappedEngine
from caravan.scheduler.step_graph import without_graph
from tests.scheduler.requests import make_request
from tests.support.tiny_llama import run_to_end


@pytest.fixture
def start(tiny_model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StartEngine:
    """A model of its own, and a cache that keeps it although it is small."""
    path = tmp_path / "model.gguf"
    path.write_bytes(tiny_model_path.read_bytes())
    cache = functools.partial(WeightsCache, environ={"XDG_CACHE_HOME": str(tmp_path / "cache")}, min_bytes=1)
    monkeypatch.setattr(loaded_model, "WeightsCache", cache)
    time.sleep(0.02)  # a file that changes in the tick of the start is not kept
    return StartEngine(model_path=str(path), num_threads=1, weights_cache_bytes=2**30)


def test_a_model_that_changes_between_opening_and_reading_is_not_kept(
    start: StartEngine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def open_then_change(path: Path, adapter_path: Path | None) -> Checkpoint:
        checkpoint = open_checkpoint(path, adapter_path)
        path.touch()
        return checkpoint

    monkeypatch.setattr(loaded_model, "open_checkpoint", open_then_change)
    load(start).cache.write()
    (text,) = (record.getMessage() for record in caplog.records if record.levelno == logging.WARNING)
    assert text == f"The packed weights are not kept: {start.model_path} changed while it was loaded."


def test_weights_that_are_in_the_cache_need_not_fit_a_second_time(
    start: StartEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "cache" / "caravan" / "weights"
    monkeypatch.setattr(loaded_model, "weights_folder", lambda _: folder)
    load(start).cache.write()
    monkeypatch.setattr(loaded_model, "free_memory_bytes", lambda: 1)
    assert load(start, must_fit=True).cache.mapped_bytes
    for file in folder.iterdir():
        file.unlink()
    with pytest.raises(ValueError, match="but only 1 are free"):
        load(start, must_fit=True)


def test_a_draft_model_must_fit_even_where_the_weights_of_the_model_are_in_the_cache(
    start: StartEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loaded_model, "weights_folder", lambda _: tmp_path / "cache" / "caravan" / "weights")
    load(start).cache.write()
    monkeypatch.setattr(loaded_model, "free_memory_bytes", lambda: 1)
    with pytest.raises(ValueError, match="but only 1 are free"):
        load(msgspec.structs.replace(start, draft_model_path=start.model_path), must_fit=True)


def test_an_engine_on_a_gpu_overlaps_its_steps(start: StartEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load(start)
    config = EngineConfig(num_blocks=8, max_model_len=64)
    assert type(loaded._make_engine(config, None, cast(Grammars, None), None)) is Engine

    class OnCpu(OverlappedEngine):
        def __init__(self, model: Any, config: Any, kv_dtype: Any, device: Any, sampler: Any, **options: Any) -> None:
            assert device.type == "cuda"
            self.capture = options["capture"]
            super().__init__(model, config, kv_dtype, torch.device("cpu"), sampler, **options)

    monkeypatch.setattr(overlapped_engine, "OverlappedEngine", OnCpu)
    on_gpu = dataclasses.replace(loaded, device=torch.device("cuda"))
    engine = on_gpu._make_engine(config, None, cast(Grammars, None), None)
    assert isinstance(engine, OnCpu)
    assert engine.capture is without_graph  # plain PyTorch reads lengths on the host
    request = make_request(1, [1, 2, 3], max_tokens=5)
    assert run_to_end(engine, [request])[1].finish_reason == "length"
