"""The fingerprint changes with what bits depend on, and with nothing else."""

import os
import shutil
from functools import partial
from pathlib import Path

import msgspec
import pytest
import torch

from caravan.model.cpu.weights_key import weights_key
from caravan.model.loader import open_checkpoint
from caravan.model.rope_scaling import DynamicScaling
from caravan.scheduler.config import EngineLimits
from caravan.scheduler.fingerprint import fingerprint
from caravan.scheduler.loaded_model import start_engine
from caravan.scheduler.messages import StartEngine
from tests.model.oracle import transformers_twin
from tests.support.engine_kinds import model_in
from tests.support.gguf_files import write_tiny_llama
from tests.support.lora_folders import write_adapter

LIMITS = EngineLimits(kv_cache_memory_bytes=2**22, max_model_len=64)


@pytest.fixture
def start(tiny_model_path: Path, tmp_path: Path) -> StartEngine:
    if tiny_model_path.is_dir():
        path = Path(shutil.copytree(tiny_model_path, tmp_path / "model"))
    else:
        path = Path(shutil.copy2(tiny_model_path, tmp_path / tiny_model_path.name))
    return StartEngine(model_path=str(path), dtype="float32", limits=LIMITS)


def found(start: StartEngine) -> str:
    return start_engine(start)[1].fingerprint


def test_an_engine_keeps_its_fingerprint_until_a_bit_may_change(start: StartEngine) -> None:
    first = found(start)
    assert first.startswith("fp_")
    assert len(first) == 19
    same = {"num_threads": 1, "is_replacement": True, "limits": msgspec.structs.replace(LIMITS, max_num_seqs=3)}
    for name, value in same.items():
        assert found(msgspec.structs.replace(start, **{name: value})) == first, name
    others = [
        found(msgspec.structs.replace(start, dtype="bfloat16")),
        found(msgspec.structs.replace(start, kv_cache_dtype="int8")),
        found(msgspec.structs.replace(start, dtype="bfloat16", quantization="int8")),
    ]
    path = Path(start.model_path)
    file = next(path.glob("*.safetensors")) if path.is_dir() else path
    os.utime(file, ns=(0, file.stat().st_mtime_ns + 1000))
    others.append(found(start))
    assert len({first, *others}) == 5


def test_an_adapter_that_is_merged_has_a_fingerprint_of_its_own(start: StartEngine, tmp_path: Path) -> None:
    twin = transformers_twin(write_tiny_llama(tmp_path / "model.gguf"))
    start = msgspec.structs.replace(start, model_path=str(tmp_path / "model.gguf"))
    adapters = [write_adapter(tmp_path / name, twin, seed=seed) for seed, name in enumerate("ab")]
    ready = [start_engine(msgspec.structs.replace(start, merge_lora_path=str(path)))[1] for path in ("", *adapters)]
    assert len({one.fingerprint for one in ready}) == 3
    assert [one.adapter for one in ready] == [
        "",
        *(f"{x}, rank 4, merged into 4 matrices (q_proj, v_proj)" for x in "ab"),
    ]


def test_the_context_length_counts_only_where_bits_depend_on_it(tiny_model_path: Path) -> None:
    checkpoint = open_checkpoint(tiny_model_path)
    plain = model_in("float32")
    scaled = model_in("float32", rope_scaling=DynamicScaling(factor=2.0, original_max_position=64))
    for model, num_different in ((plain, 1), (scaled, 2)):
        key = weights_key(checkpoint, model, torch.float32)
        written = {
            fingerprint(key, model, torch.float32, max_model_len=length, backend="", device="") for length in (32, 96)
        }
        assert len(written) == num_different
    key = weights_key(checkpoint, plain, torch.float32)
    of = partial(fingerprint, key, plain, torch.float32, max_model_len=32, backend="")
    usual = of(device="", environ={"HOME": "/x"})
    assert usual == of(device="", environ={})
    assert usual != of(device="", environ={"ATEN_CPU_CAPABILITY": "avx2"})
    assert usual != of(device="NVIDIA H200", environ={})
