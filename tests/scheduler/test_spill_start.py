"""How an engine gets its spill file: paths, keys, and what happens if it cannot have one."""

import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from caravan.model.loader import load_model, open_checkpoint
from caravan.model.spill_files import spill_files
from caravan.scheduler import loaded_model, spill_start
from caravan.scheduler.config import EngineLimits
from caravan.scheduler.engine import Engine
from caravan.scheduler.loaded_model import load
from caravan.scheduler.messages import StartEngine
from tests.model.oracle import transformers_twin
from tests.scheduler.requests import make_request
from tests.support.gguf_files import write_tiny_llama
from tests.support.lora_folders import write_adapter
from tests.support.spill_engines import spill_of
from tests.support.tiny_llama import run_to_end

SIZE = 2**20
PROMPT = [*range(3, 60)]


@pytest.fixture
def start(tiny_model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StartEngine:
    """A model of its own, and a cache of its own."""
    path = tmp_path / "model.gguf"
    path.write_bytes(tiny_model_path.read_bytes())
    monkeypatch.setattr(spill_start, "spill_folder", lambda _: tmp_path / "cache/kv")
    time.sleep(0.02)  # a file that changes in the tick of the start is not trusted
    limits = EngineLimits(kv_cache_memory_bytes=2**20, max_model_len=128)
    return StartEngine(model_path=str(path), num_threads=1, kv_spill_bytes=SIZE, limits=limits)


@pytest.fixture
def opened() -> Iterator[list[Engine]]:
    """Engines to be closed."""
    engines: list[Engine] = []
    yield engines
    for engine in engines:
        close(engine)


def close(engine: Engine) -> None:
    spill = spill_of(engine)
    if spill is not None and spill._thread.is_alive():
        spill.close()


def started(start: StartEngine, opened: list[Engine], **changes: Any) -> Engine:
    engine, _, _ = load(msgspec.structs.replace(start, **changes)).make_engine()
    opened.append(engine)
    return engine


def num_found(engine: Engine) -> int:
    return run_to_end(engine, [make_request(0, PROMPT)])[0].num_cached_tokens


def test_the_next_engine_of_a_model_finds_the_file_in_the_cache(
    start: StartEngine, opened: list[Engine], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    folder = tmp_path / "cache/kv"
    first = started(start, opened)
    assert num_found(first) == 0
    second = started(start, opened)  # reads only
    close(first)
    assert num_found(started(start, opened)) == 48
    close(second)
    assert folder.stat().st_mode & 0o777 == 0o700
    (file,) = spill_files(folder)
    assert file.header is not None
    assert file.header.model_path == start.model_path
    texts = [message for message in caplog.messages if message.startswith("The spill file")]
    assert texts[0].endswith(" blocks (it is new).")
    assert texts[1].endswith("; another engine writes it.")
    assert " has 3 of at most " in texts[2]


@pytest.mark.parametrize(
    "changes",
    [
        {"kv_cache_dtype": "int8"},
        {"dtype": "float32"},
        {"quantization": "int8"},
        {"limits": EngineLimits(kv_cache_memory_bytes=2**20, max_model_len=96)},
        {"limits": EngineLimits(kv_cache_memory_bytes=2**20, max_model_len=128, block_size=32)},
    ],
)
def test_threat_34_blocks_of_other_options_are_not_found(
    start: StartEngine, opened: list[Engine], changes: dict[str, Any]
) -> None:
    path = f"{start.model_path}.blocks"
    engine = started(start, opened, kv_spill_path=path)
    num_found(engine)
    close(engine)
    engine = started(start, opened, kv_spill_path=path, **changes)
    assert num_found(engine) == 0
    close(engine)
    assert num_found(started(start, opened, kv_spill_path=path, **changes)) > 0


def test_threat_34_blocks_of_the_model_without_its_adapter_are_not_found(
    start: StartEngine, opened: list[Engine], tmp_path: Path
) -> None:
    path = f"{start.model_path}.blocks"
    twin = transformers_twin(write_tiny_llama(Path(start.model_path)))
    adapter = write_adapter(tmp_path / "adapter", twin)
    time.sleep(0.02)
    engine = started(start, opened, kv_spill_path=path)
    num_found(engine)
    close(engine)
    engine = started(start, opened, kv_spill_path=path, merge_lora_path=str(adapter))
    assert num_found(engine) == 0
    close(engine)
    assert num_found(started(start, opened, kv_spill_path=path, merge_lora_path=str(adapter))) > 0


def test_threat_34_blocks_of_a_model_that_has_changed_are_not_found(start: StartEngine, opened: list[Engine]) -> None:
    path = f"{start.model_path}.blocks"
    engine = started(start, opened, kv_spill_path=path)
    num_found(engine)
    close(engine)
    Path(start.model_path).touch()
    time.sleep(0.02)
    assert num_found(started(start, opened, kv_spill_path=path)) == 0


def test_a_model_that_changes_while_it_is_loaded_has_no_file(
    start: StartEngine, opened: list[Engine], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def open_then_change(path: Path, adapter_path: Path | None) -> Any:
        checkpoint = open_checkpoint(path, adapter_path)
        path.touch()
        return checkpoint

    monkeypatch.setattr(loaded_model, "open_checkpoint", open_then_change)
    assert spill_of(started(start, opened)) is None
    assert caplog.messages == [f"There is no spill file: {start.model_path} changed while it was loaded."]


def test_a_model_whose_files_are_gone_has_no_file(
    start: StartEngine, opened: list[Engine], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:

    def load_then_remove(*arguments: Any, **options: Any) -> Any:
        model = load_model(*arguments, **options)
        Path(start.model_path).unlink()
        return model

    monkeypatch.setattr(loaded_model, "load_model", load_then_remove)
    assert load(start).spill_key is None
    assert caplog.messages[-1].startswith("There is no spill file: ")


@pytest.mark.parametrize("trouble", ["folder", "size", "disk", "in use", "home"])
def test_the_first_engine_does_not_start_without_its_file_and_a_replacement_does(
    start: StartEngine,
    opened: list[Engine],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    trouble: str,
) -> None:
    reason = ""
    match trouble:
        case "folder":
            start = msgspec.structs.replace(start, kv_spill_path=str(tmp_path / "none/kv"))
            reason = "No such file or directory"
        case "size":
            start = msgspec.structs.replace(start, kv_spill_bytes=1000)
            reason = "1,000 bytes have no room for a block of"
        case "disk":
            monkeypatch.setattr(os, "posix_fallocate", full_disk)
            reason = "No space left on device"
        case "in use":
            start = msgspec.structs.replace(start, kv_spill_path=str(tmp_path / "kv"))
            started(start, opened, kv_cache_dtype="int8")
            reason = "another engine uses it, and its blocks were computed with other kv_dtype"
        case "home":
            (tmp_path / "cache").touch()
            reason = "Not a directory"
    with pytest.raises(ValueError, match=rf"--kv-spill [\d,]+ bytes: .* cannot be used: {reason}"):
        started(start, opened)
    engine = started(start, opened, is_replacement=True)
    assert spill_of(engine) is None
    assert num_found(engine) == 0
    assert reason in caplog.messages[-1]


def full_disk(*_: Any) -> None:
    raise OSError(28, "No space left on device")


def test_a_gpu_is_refused_by_name(start: StartEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loaded_model, "choose_device", lambda _: torch.device("cuda"))
    with pytest.raises(ValueError, match="--kv-spill .* cannot be combined with a GPU"):
        load(start)
