"""Weights from GGUF: every type, every name, every way a file can be wrong."""

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from caravan.model.checkpoint import BrokenCheckpoint
from caravan.model.checkpoint.gguf import open_gguf
from caravan.model.checkpoint.gguf_header import read_gguf_header
from caravan.model.checkpoint.row_order import half_split
from caravan.model.config import UnsupportedModel
from caravan.model.llama import Llama
from tests.model.oracle import load_checkpoint
from tests.support.gguf_blocks import random_blocks
from tests.support.gguf_files import F32, Tensors, interleaved, write_tiny_llama
from tests.support.tiny_llama import tiny_llama

Q = gguf.GGMLQuantizationType
CPU = torch.device("cpu")
# Largest error of a value relative to the largest of its block: half a step, or the rounding of the float.
SIMPLE_TYPES = {
    Q.F32: 0.0, Q.F16: 1e-3, Q.BF16: 4e-3, Q.Q4_0: 0.13, Q.Q4_1: 0.07, Q.Q5_0: 0.07, Q.Q5_1: 0.04, Q.Q8_0: 5e-3,
}  # fmt: skip
SUPER_BLOCK_TYPES = (Q.Q2_K, Q.Q3_K, Q.Q4_K, Q.Q5_K, Q.Q6_K, Q.IQ4_XS, Q.MXFP4, Q.NVFP4)


def weights_of(model: Llama) -> dict[str, torch.Tensor]:
    return {name: weight.detach() for name, weight in model.named_parameters()}


@pytest.mark.parametrize("kind", SIMPLE_TYPES, ids=lambda kind: kind.name)
def test_weights_of_each_simple_type_come_back_in_their_places(tmp_path: Path, kind: Q) -> None:
    written = write_tiny_llama(tmp_path / "m.gguf", quantize=kind)
    loaded = weights_of(load_checkpoint(tmp_path / "m.gguf", torch.float32))
    assert loaded.keys() == weights_of(written).keys()
    for name, weight in weights_of(written).items():
        tolerance = SIMPLE_TYPES[kind] * float(weight.abs().max())
        torch.testing.assert_close(loaded[name], weight, atol=tolerance, rtol=0, msg=name)


@pytest.mark.parametrize("kind", SUPER_BLOCK_TYPES, ids=lambda kind: kind.name)
def test_weights_of_each_super_block_type_are_dequantized_row_by_row(tmp_path: Path, kind: Q) -> None:
    model = tiny_llama(vocab_size=278, hidden_size=256, intermediate_size=256, head_dim=16)
    stored = random_blocks(kind.name, rows=256, width=256)

    def change(tensors: Tensors) -> None:
        tensors["blk.1.ffn_down.weight"] = (stored, kind)
        tensors["blk.0.ffn_up.weight"] = (stored, kind)

    write_tiny_llama(tmp_path / "m.gguf", model=model, change=change)
    loaded = weights_of(load_checkpoint(tmp_path / "m.gguf", torch.float32))
    expected = torch.stack([torch.from_numpy(gguf.dequantize(row, kind)) for row in stored])
    assert torch.equal(loaded["layers.1.feed_forward.down.weight"], expected)
    gate, up = loaded["layers.0.feed_forward.gate_up.weight"].chunk(2)
    assert torch.equal(up, expected)
    torch.testing.assert_close(gate, weights_of(model)["layers.0.feed_forward.gate_up.weight"][:256])


@pytest.mark.parametrize("kind", [Q.Q8_0, Q.Q4_1, Q.F16], ids=lambda kind: kind.name)
def test_vectors_may_have_any_type(tmp_path: Path, kind: Q) -> None:
    stored = gguf.quantize(np.linspace(-1, 1, 64, dtype=np.float32)[None], kind)
    write_tiny_llama(tmp_path / "m.gguf", change=put("blk.1.ffn_norm.weight", stored[0], kind))
    loaded = weights_of(load_checkpoint(tmp_path / "m.gguf", torch.float32))
    assert torch.equal(loaded["layers.1.feed_forward_norm.weight"], torch.from_numpy(gguf.dequantize(stored, kind)[0]))


def test_q4_1_is_scale_times_nibble_plus_minimum(tmp_path: Path) -> None:
    nibbles = np.arange(64, dtype=np.uint8).reshape(2, 32) % 16
    scales, minima = np.array([0.5, 0.25], np.float16), np.array([-1.0, 2.0], np.float16)
    blocks = [  # 16 bytes; the low nibbles are the first half of the values
        scales[i : i + 1].tobytes() + minima[i : i + 1].tobytes() + (nibbles[i, :16] | nibbles[i, 16:] << 4).tobytes()
        for i in range(2)
    ]
    row = np.frombuffer(b"".join(blocks), np.uint8)

    def change(tensors: Tensors) -> None:
        tensors["token_embd.weight"] = (np.tile(row, (278, 1)), Q.Q4_1)

    write_tiny_llama(tmp_path / "m.gguf", change=change)
    embedding = load_checkpoint(tmp_path / "m.gguf", torch.float32).embedding.weight
    expected = [scales[i] * nibbles[i, j] + minima[i] for i in range(2) for j in range(32)]
    assert embedding[7].tolist() == expected


def test_half_split_undoes_the_interleaving_of_converters() -> None:
    weight = torch.arange(24.0).view(12, 2)
    assert torch.equal(half_split(interleaved(weight, 2), 2), weight)
    assert not torch.equal(interleaved(weight, 2), weight)


def test_an_explicit_output_head_is_used_even_if_it_could_be_tied(tmp_path: Path) -> None:
    model = tiny_llama(vocab_size=278, hidden_size=64, head_dim=16, tie_embeddings=False)
    write_tiny_llama(tmp_path / "m.gguf", model=model)
    loaded = load_checkpoint(tmp_path / "m.gguf", torch.float32)
    assert torch.equal(loaded.head(), model.head())


def test_the_dtype_is_converted_when_loading(tmp_path: Path) -> None:
    model = write_tiny_llama(tmp_path / "m.gguf")
    loaded = load_checkpoint(tmp_path / "m.gguf", torch.bfloat16)
    assert torch.equal(loaded.embedding.weight, model.embedding.weight.bfloat16())


def remove(name: str) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        del tensors[name]

    return change


def put(name: str, array: np.ndarray[Any, Any], kind: Q = F32) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        tensors[name] = (array, kind)

    return change


ONES = np.ones((64, 64), np.float32)
NOT_FINITE = np.where(np.eye(64) > 0, np.nan, ONES).astype(np.float32)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (remove("blk.1.attn_k.weight"), BrokenCheckpoint, "lacks the tensor blk.1.attn_k.weight"),
        (remove("output_norm.weight"), BrokenCheckpoint, "lacks the tensor output_norm.weight"),
        (
            put("blk.2.attn_q.weight", ONES),
            UnsupportedModel,
            "blk.2.attn_q.weight, which this architecture does not have",
        ),
        (
            put("blk.0.attn_q.bias", ONES[0]),
            UnsupportedModel,
            "blk.0.attn_q.bias, which this architecture does not have",
        ),
        (put("rope_freqs.weight", ONES[0]), BrokenCheckpoint, "must have 8 positive numbers"),
        (put("rope_freqs.weight", ONES), BrokenCheckpoint, r"rope_freqs.weight has the shape \[64, 64\]"),
        (put("rope_freqs.weight", ONES[0, :0]), BrokenCheckpoint, r"rope_freqs.weight has the shape \[0\]"),
        (put("rope_freqs.weight", -ONES[0, :8]), BrokenCheckpoint, "must have 8 positive numbers"),
        (put("blk.0.attn_q.weight", ONES[:32]), BrokenCheckpoint, r"shape \[32, 64\]; it must be \[64, 64\]"),
        (put("blk.0.attn_q.weight", NOT_FINITE), BrokenCheckpoint, "blk.0.attn_q.weight holds values that are not"),
        (put("blk.0.attn_q.weight", -ONES * np.inf), BrokenCheckpoint, "blk.0.attn_q.weight holds values that are not"),
        (put("blk.0.attn_q.weight", ONES.astype(np.float64), Q.F64), UnsupportedModel, "has the type F64"),
    ],
)
def test_a_wrong_tensor_is_refused_by_name(
    tmp_path: Path, change: Callable[[Tensors], None], error: type[ValueError], words: str
) -> None:
    write_tiny_llama(tmp_path / "m.gguf", change=change)
    with pytest.raises(error, match=words) as caught:
        load_checkpoint(tmp_path / "m.gguf", torch.float32)
    assert str(tmp_path / "m.gguf") in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"general.architecture": "gptj"}, "model of kind 'gptj'"),
        ({"llama.expert_count": 8}, "llama.expert_used_count is None"),
        ({"llama.rope.scaling.type": "longrope"}, "embeddings by 'longrope'; supported are linear and yarn"),
        ({"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": -1.0}, "factor is -1"),
        ({"llama.rope.scaling.type": "yarn", "llama.rope.scaling.yarn_ext_factor": 0.5}, "form of YaRN"),
        ({"llama.rope.scaling.type": 3}, "llama.rope.scaling.type is 3; it must be a text"),
        ({"llama.rope.freq_base": "many"}, "llama.rope.freq_base is 'many'; it must be a number"),
        ({"llama.attention.temperature_scale": 0.1}, "scales queries by their position"),
        ({"split.count": 2}, "Give the first one, whose name ends in -00001-of-00002.gguf"),
        ({"split.count": 2000}, "split.count is 2000"),
        ({"llama.attention.value_length": 8}, "value_length is 8"),
        ({"llama.attention.head_count_kv": 3}, "multiple of num_kv_heads"),
        ({"llama.embedding_length": None}, "llama.embedding_length is None"),
        ({"llama.block_count": "two"}, "llama.block_count is 'two'"),
        ({"llama.rope.freq_base": 0.0}, "must be positive"),
        ({"tokenizer.ggml.tokens": None}, "no vocabulary"),
    ],
)
def test_metadata_of_another_model_are_refused_by_name(
    tmp_path: Path, metadata: dict[str, object | None], words: str
) -> None:
    write_tiny_llama(tmp_path / "m.gguf", metadata=metadata)
    with pytest.raises((UnsupportedModel, BrokenCheckpoint), match=words):
        load_checkpoint(tmp_path / "m.gguf", torch.float32)


def test_scaled_embeddings_with_divisors_too_are_refused(tmp_path: Path) -> None:
    scaling = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 2.0}
    write_tiny_llama(tmp_path / "m.gguf", metadata=scaling, change=put("rope_freqs.weight", ONES[0, :8]))
    with pytest.raises(UnsupportedModel, match="scales its rotary embeddings by 'linear', too"):
        open_gguf(tmp_path / "m.gguf")


@pytest.mark.parametrize(
    ("kind", "error", "words"),
    [(999, UnsupportedModel, "has the type 999"), (int(Q.Q2_K), BrokenCheckpoint, "rows of 64 values")],
)
def test_a_type_that_the_tensor_cannot_have_is_refused(
    tmp_path: Path, kind: int, error: type[ValueError], words: str
) -> None:
    path = tmp_path / "m.gguf"
    write_tiny_llama(path)
    content = bytearray(path.read_bytes())
    name = b"blk.0.attn_q.weight"
    at = content.index(name) + len(name) + 4 + 2 * 8  # after the number of dimensions and both of them
    content[at : at + 4] = struct.pack("<I", kind)
    path.write_bytes(content)
    with pytest.raises(error, match=words):
        open_gguf(path)


def test_a_file_that_was_cut_off_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_tiny_llama(path)
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(BrokenCheckpoint, match="is cut off"):
        load_checkpoint(path, torch.float32)


def test_overlapping_tensors_are_rejected(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_tiny_llama(path)
    content = bytearray(path.read_bytes())
    header = read_gguf_header(path)
    first, second = (header.tensors[f"blk.{layer}.attn_k.weight"] for layer in (0, 1))
    start = min(tensor.start for tensor in header.tensors.values())
    at = content.index(struct.pack("<Q", second.start - start), content.index(b"blk.1.attn_k.weight"))
    content[at : at + 8] = struct.pack("<Q", first.start - start)
    path.write_bytes(content)
    with pytest.raises(BrokenCheckpoint, match="overlap"):
        open_gguf(path)
