"""The backend of a model follows from its files, the options and the machine."""

import logging
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from caravan.model.backend import choose_backend, choose_device
from caravan.model.checkpoint.checkpoint import weight_parts
from caravan.model.cpu.build import KernelsUnavailable, build_kernels
from caravan.model.cpu.kernels import WeightFormat
from caravan.model.cpu.linear import PackedLinear
from caravan.model.cpu.llama import CpuLlama
from caravan.model.cuda.requirements import missing_for_kernels
from caravan.model.gpu_requirements import missing_for_gpu
from caravan.model.kv_cache import POOL_DTYPES, KVCache, choose_kv_dtype, kv_bytes_per_token
from caravan.model.llama import Llama
from caravan.model.loader import load_model, open_checkpoint
from caravan.model.tokenizer.loader import load_tokenizer
from tests.support.tiny_llama import TINY


def choose(path: Path, **choices: Any) -> Any:
    defaults: dict[str, Any] = {
        "dtype": "auto",
        "quantization": "auto",
        "block_size": 16,
    }
    return choose_backend(open_checkpoint(path), **(defaults | choices))


@pytest.mark.real_model
def test_a_file_on_a_grid_keeps_it(real_model_path: Path) -> None:
    backend = choose(real_model_path, quantization="int4")
    checkpoint = open_checkpoint(real_model_path)
    model = load_model(checkpoint, backend.dtype, torch.device("cpu"), 64, backend.make_model)
    formats = {name: module.formats for name, module in model.named_modules() if isinstance(module, PackedLinear)}
    assert formats.pop("output") == [WeightFormat.GRID_8]
    assert all(found == [WeightFormat.GRID_4] for found in formats.values())


@pytest.mark.real_model
def test_weights_on_the_grid_of_their_file_cost_no_more_than_weights_in_bfloat16(real_model_path: Path) -> None:
    from tests.model.oracle import logits_of_every_position

    checkpoint = open_checkpoint(real_model_path)
    text = (Path(__file__).parents[2] / "LICENSE").read_text()
    prompt = load_tokenizer(real_model_path).encode(text)[:500]

    def logprobs(**choices: str) -> torch.Tensor:
        backend = choose(real_model_path, **choices)
        model = load_model(checkpoint, backend.dtype, torch.device("cpu"), 512, backend.make_model)
        return logits_of_every_position(model, prompt).log_softmax(-1)

    exact = logprobs(dtype="float32")
    rounded, on_grid = (
        float((exact.exp() * (exact - logprobs(quantization=name))).sum(-1).mean()) for name in ("none", "int4")
    )
    assert on_grid < 1.1 * rounded < 0.002  # the Kullback-Leibler divergence


@pytest.mark.real_model
def test_auto_keeps_the_blocks_of_a_file_that_has_them(real_model_path: Path, tiny_model_path: Path) -> None:
    assert choose(real_model_path).quantization == "native"
    assert choose(tiny_model_path).quantization == "none"


def test_native_without_blocks_is_none(tiny_model_path: Path) -> None:
    native, none = choose(tiny_model_path, quantization="native"), choose(tiny_model_path, quantization="none")
    assert (native.quantization, native.text, native.weight_bytes) == ("none", "bfloat16", none.weight_bytes)


@pytest.mark.real_model
def test_native_keeps_the_embedding_in_the_file(real_model_path: Path) -> None:
    backend = choose(real_model_path)
    model = load_model(open_checkpoint(real_model_path), backend.dtype, torch.device("cpu"), 64, backend.make_model)
    assert sum(weight.nbytes for weight in model.parameters()) == backend.weight_bytes
    formats = {name: module.formats for name, module in model.named_modules() if isinstance(module, PackedLinear)}
    assert formats.pop("output") == [WeightFormat.Q8_0]
    assert all(found == [WeightFormat.GRID_4_INT8] for found in formats.values())
    assert not list(model.embedding.parameters())


@pytest.mark.parametrize("quantization", ["none", "native", "int8", "int4"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_bytes_of_the_weights_are_known_before_they_are_read(
    tiny_model_path: Path, quantization: str, dtype: str
) -> None:
    if dtype == "float32" and quantization != "none":
        with pytest.raises(ValueError, match="cannot be combined with --dtype float32"):
            choose(tiny_model_path, quantization=quantization, dtype=dtype)
        return
    backend = choose(tiny_model_path, quantization=quantization, dtype=dtype)
    model = load_model(open_checkpoint(tiny_model_path), backend.dtype, torch.device("cpu"), 64, backend.make_model)
    assert sum(weight.nbytes for weight in model.parameters()) == backend.weight_bytes
    assert isinstance(model, CpuLlama) == (dtype == "bfloat16")


def test_auto_rounds_nothing_to_less_than_bfloat16(tiny_model_path: Path) -> None:
    assert choose(tiny_model_path).quantization == "none"
    assert choose(tiny_model_path).text == "bfloat16"


def test_odd_blocks_are_served_in_plain_pytorch_with_a_warning(
    tiny_model_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        backend = choose(tiny_model_path, block_size=8, quantization="int8", dtype="bfloat16")
    assert "a multiple of 16" in caplog.text
    assert "--quantization int8 needs the kernels" in caplog.text
    assert type(backend.make_model(open_checkpoint(tiny_model_path).config)) is Llama


def test_a_missing_compiler_gives_one_warning(
    tiny_model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", "no-such-compiler")
    with caplog.at_level(logging.WARNING):
        backend = choose(tiny_model_path, dtype="bfloat16")
    assert caplog.text.count("The kernels cannot be built") == 1
    assert backend.text == "bfloat16, plain PyTorch"
    assert not list((tmp_path / "caravan" / "kernels").glob("build-*")), "what a failed build left is removed"


@pytest.mark.slow
def test_a_build_is_kept_and_a_broken_one_is_an_error(tmp_path: Path) -> None:
    environ = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    quick = ("-march=native", "-O0")  # half the time of a build that is used
    folder = tmp_path / "caravan" / "kernels"
    build_kernels(quick, "caravan_kept", environ)
    (kept,) = folder.iterdir()
    changed = kept.stat().st_mtime_ns
    build_kernels(quick, "caravan_kept", environ)
    assert [path.stat().st_mtime_ns for path in folder.iterdir()] == [changed]
    other = tmp_path / "other" / "caravan" / "kernels"
    other.mkdir(parents=True)
    (other / kept.name).write_bytes(b"not a library")
    with pytest.raises(KernelsUnavailable):
        build_kernels(quick, "caravan_kept", {"XDG_CACHE_HOME": str(tmp_path / "other")})


def test_the_pool_has_the_numbers_of_the_model_or_eight_bits() -> None:
    assert choose_kv_dtype("auto", torch.float32) == torch.float32
    assert choose_kv_dtype("auto", torch.bfloat16) == torch.bfloat16
    assert choose_kv_dtype("bfloat16", torch.bfloat16) == torch.bfloat16
    assert choose_kv_dtype("int8", torch.float32) == choose_kv_dtype("int8", torch.bfloat16) == torch.int8
    with pytest.raises(ValueError, match="bfloat16 cannot be combined with a model computed in float32"):
        choose_kv_dtype("bfloat16", torch.float32)


def test_a_pool_in_eight_bits_takes_half_and_its_size_is_known_before() -> None:
    config = replace(TINY, head_dim=64)
    sizes = {dtype: kv_bytes_per_token(config, dtype) for dtype in POOL_DTYPES}
    for dtype, size in sizes.items():
        assert KVCache(config, 4, 16, dtype, torch.device("cpu")).num_bytes == 4 * 16 * size
    assert sizes[torch.int8] / sizes[torch.bfloat16] == pytest.approx(0.53, abs=0.005)


def test_a_gpu_without_triton_computes_in_plain_pytorch_with_a_warning(
    tiny_model_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("caravan.model.backend.missing_for_gpu", lambda: "Triton is not installed.")
    backend = choose(tiny_model_path, is_gpu=True)
    assert "Triton is not installed. The model runs in plain PyTorch" in caplog.text
    assert (backend.dtype, backend.quantization) == (torch.bfloat16, "none")
    assert choose(tiny_model_path, is_gpu=True, dtype="float32").dtype == torch.float32
    assert type(backend.make_model(TINY)) is Llama
    with pytest.raises(ValueError, match="int4 needs kernels for the GPU. Triton is not installed"):
        choose(tiny_model_path, is_gpu=True, quantization="int4")


def test_options_that_a_device_does_not_have_are_refused(tiny_model_path: Path) -> None:
    for quantization in ("native", "int8"):
        with pytest.raises(ValueError, match=f"--quantization {quantization} needs the CPU kernels; a GPU has auto"):
            choose(tiny_model_path, is_gpu=True, quantization=quantization)
    with pytest.raises(ValueError, match="cannot be combined with --dtype float32"):
        choose(tiny_model_path, is_gpu=True, quantization="int4", dtype="float32")
    with pytest.raises(ValueError, match="--fast-matmul needs weights in bfloat16"):
        choose(tiny_model_path, is_gpu=True, quantization="int4", fast_matmul=True)
    with pytest.raises(ValueError, match="--fast-matmul needs a GPU"):
        choose(tiny_model_path, fast_matmul=True)


def test_kernels_for_gpus_need_triton_and_a_c_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert missing_for_kernels() == "Triton is not installed."
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setenv("PATH", str(tmp_path))
    assert (
        missing_for_kernels({"CC": "no-such-compiler"}) == "Triton needs a C compiler, and CC=no-such-compiler is none."
    )
    assert missing_for_kernels({}) == "Triton needs a C compiler: gcc, clang or the one that CC names."
    (tmp_path / "clang").touch(0o755)
    assert missing_for_kernels({}) is missing_for_kernels({"CC": "clang"}) is None


@pytest.fixture
def ready_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make this machine look as if it had all that kernels need; return the folder of Python's headers."""
    (tmp_path / "Python.h").touch()
    monkeypatch.setattr("caravan.model.gpu_requirements.missing_for_kernels", lambda: None)
    monkeypatch.setattr("sysconfig.get_paths", lambda scheme: {"include": str(tmp_path)})
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA T4")
    assert missing_for_gpu() is None
    return tmp_path


def test_kernels_for_gpus_need_the_headers_of_python(ready_gpu: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (ready_gpu / "Python.h").unlink()
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert missing_for_gpu() == (
        f"Triton needs Python's headers, and {ready_gpu} has no Python.h. Install python{version}-dev, or as your "
        "system names it."
    )
    monkeypatch.setattr("caravan.model.gpu_requirements.missing_for_kernels", lambda: "Triton is not installed.")
    assert missing_for_gpu() == "Triton is not installed."


def test_the_headers_are_looked_for_where_triton_looks(ready_gpu: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def paths(scheme: str) -> dict[str, str]:
        asked.append(scheme)
        return {"include": str(ready_gpu)}

    monkeypatch.setattr("sysconfig.get_paths", paths)
    for scheme in ("posix_local", "posix_prefix", "venv"):
        monkeypatch.setattr("sysconfig.get_default_scheme", lambda scheme=scheme: scheme)
        assert missing_for_gpu() is None
    assert asked == ["posix_prefix", "posix_prefix", "venv"]


def test_kernels_for_gpus_need_an_a100_or_newer(ready_gpu: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    assert missing_for_gpu() == ("NVIDIA T4 has compute capability 7.5; the kernels need 8.0 (A100) or newer.")
    for newer in ((8, 9), (9, 0), (12, 0)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda newer=newer: newer)
        assert missing_for_gpu() is None


@pytest.mark.parametrize("quantization", ["none", "int4"])
def test_a_plan_for_a_gpu_needs_nothing_of_this_machine(
    tiny_model_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, quantization: str
) -> None:
    monkeypatch.setattr("caravan.model.backend.missing_for_gpu", lambda: "Triton is not installed.")
    monkeypatch.setitem(sys.modules, "triton", None)  # importing it fails
    backend = choose(tiny_model_path, is_gpu=True, is_plan=True, quantization=quantization)
    assert backend.quantization == quantization
    assert not caplog.text


def test_the_weights_of_the_layers_have_4_bits_and_their_grids_on_a_gpu(tiny_model_path: Path) -> None:
    none, int4 = (choose(tiny_model_path, is_gpu=True, is_plan=True, quantization=name) for name in ("none", "int4"))
    shapes = {
        name: (sum(part.shape[0] for part in parts), *parts[0].shape[1:])
        for name, parts in weight_parts(open_checkpoint(tiny_model_path)).items()
    }
    saved = sum(
        rows * inputs[0] * 2 - rows * -(-inputs[0] // 64) * 40  # 64 numbers in 32 bytes, two scales, two offsets
        for name, (rows, *inputs) in shapes.items()
        if name.startswith("layers.") and inputs
    )
    assert none.weight_bytes - int4.weight_bytes == saved > 0


def test_the_device_is_a_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == choose_device("cpu") == torch.device("cpu")
    with pytest.raises(ValueError, match="--device cuda: PyTorch .* finds no GPU"):
        choose_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto") == choose_device("cuda") == torch.device("cuda")
    assert choose_device("cpu") == torch.device("cpu")
