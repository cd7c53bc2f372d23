"""A model whose weights stay in the blocks of its GGUF file, against the same file in float32."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from caravan.model.blocks import BLOCK_SIZES, NVFP4_WITH_FACTOR
from caravan.model.checkpoint import BrokenCheckpoint
from caravan.model.checkpoint.checkpoint import read_weights
from caravan.model.checkpoint.gguf import open_gguf
from caravan.model.config import UnsupportedModel
from caravan.model.cpu.linear import PackedLinear
from caravan.model.cpu.llama import CpuLlama
from caravan.model.llama import Llama
from caravan.model.loader import load_model, open_checkpoint, plain_llama
from tests.model.oracle import logits_of_every_position
from tests.support.block_files import SIZES, put, write_model
from tests.support.gguf_files import Tensors, write_tiny_llama
from tests.support.tiny_llama import tiny_llama

GGUF_KINDS = [kind for kind in BLOCK_SIZES if kind != NVFP4_WITH_FACTOR]
CPU = torch.device("cpu")
PROMPT = torch.randint(0, 270, (40,), generator=torch.Generator().manual_seed(1)).tolist()


def load(path: Path, kernels: Any = None) -> Llama:
    if kernels is None:
        return load_model(open_gguf(path), torch.float32, CPU, 64, plain_llama)
    return load_model(open_gguf(path), torch.bfloat16, CPU, 64, lambda config: CpuLlama(config, kernels, "native"))


def error(path: Path, kernels: Any) -> float:
    """Return how far the logits are off, in units of their own deviation."""
    expected = logits_of_every_position(load(path), PROMPT)
    ours = logits_of_every_position(load(path, kernels), PROMPT)
    return float((ours - expected).pow(2).mean().sqrt() / expected.std())


@pytest.mark.parametrize("kind", GGUF_KINDS)
@pytest.mark.parametrize("is_tied", [True, False])
def test_logits_are_those_of_the_file_but_for_rounded_rows(
    kernels: Any, tmp_path: Path, kind: str, is_tied: bool
) -> None:
    path = write_model(tmp_path / "m.gguf", {"": kind}, tie_embeddings=is_tied)
    assert error(path, kernels) < 0.02


def test_each_tensor_keeps_its_own_kind(kernels: Any, tmp_path: Path) -> None:
    """As in a file of type Q4_K_M, whose values are in Q6_K; one tensor is not in blocks at all."""
    kinds = {"": "Q4_K", "attn_v": "Q6_K", "0.ffn_down": "Q6_K", "token_embd": "Q6_K"}
    path = write_model(tmp_path / "m.gguf", kinds | {"1.attn_k": "", "1.ffn_up": "Q5_1"})
    assert error(path, kernels) < 0.02
    formats = {
        name: [part.value for part in module.formats]
        for name, module in load(path, kernels).named_modules()
        if isinstance(module, PackedLinear)
    }
    assert formats["layers.0.attention.qkv"] == ["Q4_K", "Q6_K"]  # queries and keys are one part
    assert formats["layers.1.attention.qkv"] == ["Q4_K", "bfloat16", "Q6_K"]
    assert formats["layers.0.feed_forward.gate_up"] == ["Q4_K"]
    assert formats["layers.1.feed_forward.gate_up"] == ["Q4_K", "grid of 5 bits times bytes"]
    assert formats["output"] == ["Q6_K"]


def test_experts_stay_in_their_blocks(kernels: Any, tmp_path: Path) -> None:
    kinds = {"": "Q4_K", "down_exps": "Q6_K"}
    path = write_model(tmp_path / "m.gguf", kinds, num_experts=6, num_chosen_experts=2)
    assert error(path, kernels) < 0.02
    model = load(path, kernels)
    for name, kind in (("gate_up", "Q4_K"), ("down", "Q6_K")):
        linear = model.get_submodule(f"layers.1.feed_forward.experts.5.{name}")
        assert isinstance(linear, PackedLinear)
        assert [part.value for part in linear.formats] == [kind]


def test_factors_of_nvfp4_matrices_are_applied(kernels: Any, tmp_path: Path) -> None:
    """Queries have a factor, keys none, and scales for activations are not used."""
    factor = np.array([0.3], np.float32)

    def change(tensors: Tensors) -> None:
        put(tensors, "blk.0.attn_q.weight", "NVFP4", 1)
        put(tensors, "blk.0.attn_k.weight", "NVFP4", 2)
        tensors["blk.0.attn_q.scale"] = (factor, gguf.GGMLQuantizationType.F32)
        tensors["blk.0.attn_k.input_scale"] = (factor, gguf.GGMLQuantizationType.F32)

    path = tmp_path / "m.gguf"
    write_tiny_llama(path, model=tiny_llama(**SIZES), change=change)
    checkpoint = open_gguf(path)
    assert checkpoint.blocks == {"blk.0.attn_q.weight": NVFP4_WITH_FACTOR, "blk.0.attn_k.weight": "NVFP4"}
    tensor = next(tensor for tensor in gguf.GGUFReader(path).tensors if tensor.name == "blk.0.attn_q.weight")
    expected = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type)) * 0.3
    wide = torch.empty(expected.shape)
    checkpoint.read("blk.0.attn_q.weight", wide)
    torch.testing.assert_close(wide, expected, rtol=1e-6, atol=0)
    stored = checkpoint.read_blocks("blk.0.attn_q.weight")
    in_blocks = kernels.widen_rows(stored, torch.arange(len(stored)), NVFP4_WITH_FACTOR)
    torch.testing.assert_close(in_blocks, expected, rtol=1e-6, atol=0)
    assert error(path, kernels) < 0.02


@pytest.mark.parametrize(
    ("factor", "kind", "words"),
    [
        (np.ones(2, np.float32), "F32", r"attn_q.scale has the shape \[2\] and the type F32; it must be one number"),
        (np.full(1, 3e38, np.float32), "F32", r"attn_q.scale is .*; with it weights would not be finite"),
        (np.full(1, np.nan, np.float32), "F32", r"attn_q.scale is nan; with it weights would not be finite"),
        (np.ones(1, np.float16), "F16", r"attn_q.scale has the shape \[1\] and the type F16; it must be one number"),
        (np.array([np.inf], np.float32), "F32", r"attn_q.scale is inf; with it weights would not be finite"),
    ],
)
def test_factors_that_do_not_fit_are_refused_by_name(
    kernels: Any, tmp_path: Path, factor: Any, kind: str, words: str
) -> None:
    def change(tensors: Tensors) -> None:
        put(tensors, "blk.0.attn_q.weight", "NVFP4", 1)
        tensors["blk.0.attn_q.scale"] = (factor, gguf.GGMLQuantizationType[kind])

    write_tiny_llama(tmp_path / "m.gguf", model=tiny_llama(**SIZES), change=change)
    with pytest.raises(BrokenCheckpoint, match=words):
        load(tmp_path / "m.gguf", kernels)


def test_a_factor_of_a_matrix_of_another_type_is_refused(kernels: Any, tmp_path: Path) -> None:
    def change(tensors: Tensors) -> None:
        tensors["blk.0.attn_q.scale"] = (np.ones(1, np.float32), gguf.GGMLQuantizationType.F32)

    write_tiny_llama(tmp_path / "m.gguf", change=change)
    with pytest.raises(UnsupportedModel, match=r"blk.0.attn_q.scale, which this architecture does not have"):
        open_checkpoint(tmp_path / "m.gguf")


@pytest.mark.parametrize("name", ["blk.1.attn_k.weight", "token_embd.weight"])
@pytest.mark.parametrize("is_tied", [True, False])
def test_scales_that_are_not_finite_are_refused_by_name(kernels: Any, tmp_path: Path, name: str, is_tied: bool) -> None:
    path = write_model(tmp_path / "m.gguf", {"": "Q4_K"}, tie_embeddings=is_tied)
    tensor = next(tensor for tensor in gguf.GGUFReader(path).tensors if tensor.name == name)
    with path.open("r+b") as file:
        file.seek(int(tensor.data_offset) + 144)
        file.write(np.array([np.inf], np.float16).tobytes())
    with pytest.raises(BrokenCheckpoint, match=r"(attention.qkv|embedding).weight holds values that are not finite"):
        load(path, kernels)


def test_few_weights_are_read_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory for all of them would be several times that of a packed model."""
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    checkpoint = open_gguf(write_model(tmp_path / "m.gguf", {}))
    num_read = 0
    read = checkpoint.read

    def counting_read(name: str, out: torch.Tensor, rows: slice) -> None:
        nonlocal num_read
        num_read += 1
        read(name, out, rows)

    object.__setattr__(checkpoint, "read", counting_read)
    weights = read_weights(checkpoint, torch.float32)
    for num_taken in range(1, 6):
        next(weights)
        assert num_read <= 3 * (num_taken + 2)  # a weight is at most three tensors
