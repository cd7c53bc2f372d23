"""The backend of a model follows from its files, the options and the machine."""

import logging
import math
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch

from caravan.model.backend import choose_backend, choose_device
from caravan.model.checkpoint.checkpoint import weight_parts
from caravan.model.cpu.build import NATIVE, KernelsUnavailable, build_kernels, built_library
from caravan.model.cpu.kernels import WeightFormat
from caravan.model.cpu.linear import PackedLinear, Quantization
from caravan.model.cpu.llama import CpuLlama
from caravan.model.cuda.requirements import missing_for_kernels
from caravan.model.exchange import Exchange
from caravan.model.gpu_requirements import missing_for_gpu
from caravan.model.kv_cache import POOL_DTYPES, KVCache, choose_kv_dtype, kv_bytes_per_token
from caravan.model.llama import Llama
from caravan.model.loader import load_model, open_checkpoint
from caravan.model.share import Share
from caravan.model.tokenizer.loader import load_tokenizer
from tests.support.block_files import write_model
from tests.support.gguf_files import write_tiny_llama
from tests.support.ranks import on_ranks
from tests.support.tiny_llama import TINY, tiny_llama
from tests.support.transformers_models import OLMOE, VARIANTS, random_model


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


@pytest.mark.parametrize("quantization", ["none", "native", "int8", "int4"])
def test_the_bytes_of_experts_are_known_before_they_are_read(tmp_path: Path, quantization: str) -> None:
    path = write_model(tmp_path / "m.gguf", {"exps": "Q4_K"}, num_experts=3, num_chosen_experts=2)
    backend = choose(path, quantization=quantization)
    model = load_model(open_checkpoint(path), backend.dtype, torch.device("cpu"), 64, backend.make_model)
    assert sum(weight.nbytes for weight in model.parameters()) == backend.weight_bytes
    router = model.get_submodule("layers.0.feed_forward.router")
    assert isinstance(router, PackedLinear)
    assert router.formats == [WeightFormat.BFLOAT16]


def test_experts_are_refused_by_name_where_they_do_not_run(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.gguf", {}, num_experts=3, num_chosen_experts=2)
    with pytest.raises(ValueError, match=r"A model with experts cannot run on a GPU yet. Set --device cpu\."):
        choose(path, is_gpu=True)
    with pytest.raises(ValueError, match=r"A model with experts cannot be split between ranks yet\."):
        choose(path, share=Share(0, 2))
    random_model("Olmoe", **OLMOE).save_pretrained(tmp_path / "olmoe")
    assert choose(tmp_path / "olmoe").text == "bfloat16"
    with pytest.raises(ValueError, match="query and key norms over all heads and experts cannot run on a GPU"):
        choose(tmp_path / "olmoe", is_gpu=True)


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
    built = built_library(NATIVE, "caravan", os.environ)
    environ = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    kept = tmp_path / "caravan" / "kernels" / built.name
    kept.parent.mkdir(parents=True)
    shutil.copy(built, kept)
    changed = kept.stat().st_mtime_ns
    assert built_library(NATIVE, "caravan", environ) == kept
    assert {path: path.stat().st_mtime_ns for path in kept.parent.iterdir()} == {kept: changed}
    kept.unlink()
    kept.write_bytes(b"not a library")
    with pytest.raises(KernelsUnavailable):
        build_kernels(environ=environ)


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
    monkeypatch.setattr("caravan.model.gpu_requirements.missing_for_gpu", lambda: "Triton is not installed.")
    backend = choose(tiny_model_path, is_gpu=True)
    assert "Triton is not installed. The model runs in plain PyTorch" in caplog.text
    assert (backend.dtype, backend.quantization) == (torch.bfloat16, "none")
    assert choose(tiny_model_path, is_gpu=True, dtype="float32").dtype == torch.float32
    assert type(backend.make_model(TINY)) is Llama
    with pytest.raises(ValueError, match="int4 needs kernels for the GPU. Triton is not installed"):
        choose(tiny_model_path, is_gpu=True, quantization="int4")


@pytest.mark.parametrize(
    ("variant", "parts"),
    [
        ("olmo2", "norms after attention and feed-forward and query and key norms over all heads"),
        ("ministral3", "queries scaled by position"),
        ("gemma2", "norms after attention and feed-forward, norm weights in float32, GEGLU and soft caps of scores"),
        (
            "gemma3",
            "norms after attention and feed-forward, norm weights in float32, GEGLU and another RoPE in layers with a "
            "window",
        ),
    ],
)
def test_what_only_a_cpu_computes_is_refused_on_a_gpu_by_name(tmp_path: Path, variant: str, parts: str) -> None:
    kind, changes = VARIANTS[variant]
    random_model(kind, **changes).save_pretrained(tmp_path)
    assert type(choose(tmp_path).make_model(open_checkpoint(tmp_path).config)) is CpuLlama
    with pytest.raises(ValueError, match=f"A model with {parts} cannot run on a GPU yet. Set --device cpu."):
        choose(tmp_path, is_gpu=True)
    if variant == "olmo2":
        with pytest.raises(ValueError, match="A model with query and key norms over all heads cannot be split"):
            choose(tmp_path, share=Share(0, 2))


@pytest.mark.parametrize("quantization", ["native", "int8", "int4"])
def test_packed_weights_on_a_gpu_need_bfloat16_and_its_kernels(tiny_model_path: Path, quantization: str) -> None:
    with pytest.raises(ValueError, match=f"{quantization} computes in bfloat16; it cannot be .* --dtype float32"):
        choose(tiny_model_path, is_gpu=True, quantization=quantization, dtype="float32")
    with pytest.raises(ValueError, match=f"--fast-matmul needs weights in bfloat16; .* --quantization {quantization}"):
        choose(tiny_model_path, is_gpu=True, quantization=quantization, fast_matmul=True)


def test_fast_products_need_a_gpu(tiny_model_path: Path) -> None:
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


@pytest.mark.parametrize("quantization", ["none", "int8", "int4", "native"])
@pytest.mark.parametrize("is_tied", [True, False])
def test_the_weights_of_a_rank_have_the_size_that_is_planned(
    tmp_path: Path, quantization: Quantization, is_tied: bool
) -> None:
    model = tiny_llama(vocab_size=278, hidden_size=64, intermediate_size=96, head_dim=32, tie_embeddings=is_tied)
    write_tiny_llama(tmp_path / "m.gguf", model=model, quantize=gguf.GGMLQuantizationType.Q8_0)
    checkpoint = open_checkpoint(tmp_path / "m.gguf")

    def run(share: Share, exchange: Exchange) -> tuple[int, int]:
        backend = choose_backend(checkpoint, dtype="auto", quantization=quantization, block_size=16, share=share)
        split = load_model(
            checkpoint,
            backend.dtype,
            torch.device("cpu"),
            64,
            backend.make_model,
            share=share,
            exchange=exchange,
        )
        return backend.weight_bytes, sum(weight.nbytes for weight in split.parameters())

    for planned, found in on_ranks(3, run):
        assert planned == found


def test_the_weights_of_two_ranks_are_those_of_the_model_but_for_what_both_have(tiny_model_path: Path) -> None:
    checkpoint = open_checkpoint(tiny_model_path)
    shares = [choose(tiny_model_path, dtype="float32", share=share).weight_bytes for share in Share(0, 2).all()]
    whole = {name: part for name, (part, *_) in weight_parts(checkpoint).items()}
    of_all = sum(4 * math.prod(part.shape) for name, part in whole.items() if "norm" in name or "embedding" in name)
    assert sum(shares) == choose(tiny_model_path, dtype="float32").weight_bytes + of_all


@pytest.mark.parametrize("quantization", ["none", "int4", "int8"])
def test_a_plan_for_a_gpu_needs_nothing_of_this_machine(
    tiny_model_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, quantization: str
) -> None:
    monkeypatch.setattr("caravan.model.gpu_requirements.missing_for_gpu", lambda: "Triton is not installed.")
    monkeypatch.setitem(sys.modules, "triton", None)  # importing it fails
    backend = choose(tiny_model_path, is_gpu=True, is_plan=True, quantization=quantization)
    assert backend.quantization == quantization
    assert not caplog.text


def gguf_choice(path: Path, kinds: dict[str, str], **options: Any) -> Any:
    """Return the backend on a GPU for a model with tensors in these kinds of blocks."""
    write_model(path, kinds)
    return choose(path, is_gpu=True, is_plan=True, **options)


def test_on_a_gpu_weights_in_blocks_stay_as_they_are_unless_others_are_asked_for(
    tmp_path: Path, tiny_model_path: Path
) -> None:
    kinds = {"": "Q4_K", "attn_v": "Q6_K", "token_embd": "Q6_K", "attn_k": ""}
    path = tmp_path / "m.gguf"
    native = gguf_choice(path, kinds)
    assert (native.quantization, native.dtype) == ("native", torch.bfloat16)
    assert native.text == "native: weights as the file has them, multiplied in bfloat16"
    assert gguf_choice(path, kinds, quantization="native").weight_bytes == native.weight_bytes
    for options in ({"quantization": "none"}, {"fast_matmul": True}, {"dtype": "float32"}):
        assert gguf_choice(path, kinds, **options).quantization == "none"
    assert choose(tiny_model_path, is_gpu=True, is_plan=True).quantization == "none"
    assert choose(tiny_model_path, is_gpu=True, is_plan=True, quantization="native").quantization == "none"


def test_the_size_of_blocks_on_a_gpu_is_planned_to_the_byte(tmp_path: Path) -> None:
    """Q4_K has 4.625 bits, Q6_K 8.625; the embedding table and what is in no blocks have 16."""
    kinds, path = {"": "Q4_K", "attn_v": "Q6_K"}, tmp_path / "m.gguf"
    parts = weight_parts(open_checkpoint(write_model(path, kinds)))
    native, none = (gguf_choice(path, kinds, quantization=name) for name in ("native", "none"))
    saved = 0.0
    for name, sources in parts.items():
        if name.startswith("layers.") and len(sources[0].shape) == 2:
            for one in sources:
                saved += math.prod(one.shape) * (2 - (8.625 if "attn_v" in one.source else 4.625) / 8)
    assert none.weight_bytes - native.weight_bytes == saved > 0


@pytest.mark.parametrize(("quantization", "step_bytes"), [("int4", 80), ("int8", 132)])
def test_the_weights_of_the_layers_have_few_bits_and_their_scales_on_a_gpu(
    tiny_model_path: Path, quantization: str, step_bytes: int
) -> None:
    """128 inputs are 64 bytes, four scales and four offsets, or 128 bytes and two scales."""
    none, packed = (
        choose(tiny_model_path, is_gpu=True, is_plan=True, quantization=name) for name in ("none", quantization)
    )
    shapes = {
        name: (sum(part.shape[0] for part in parts), *parts[0].shape[1:])
        for name, parts in weight_parts(open_checkpoint(tiny_model_path)).items()
    }
    saved = sum(
        rows * inputs[0] * 2 - rows * -(-inputs[0] // 128) * step_bytes
        for name, (rows, *inputs) in shapes.items()
        if name.startswith("layers.") and inputs
    )
    assert none.weight_bytes - packed.weight_bytes == saved > 0


def test_the_device_is_a_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == choose_device("cpu") == torch.device("cpu")
    with pytest.raises(ValueError, match="--device cuda: PyTorch .* finds no GPU"):
        choose_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto") == choose_device("cuda") == torch.device("cuda")
    assert choose_device("cpu") == torch.device("cpu")
