"""One model in every format: equal logits, bit for bit; and what only one format has."""

import math
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from torch import Tensor

from caravan.model.checkpoint import BrokenCheckpoint
from caravan.model.checkpoint.gemma import gemma_gguf_flags
from caravan.model.checkpoint.gguf_header import read_gguf_header
from caravan.model.checkpoint.meta import feed_forward_size
from caravan.model.config import UnsupportedModel
from caravan.model.loader import open_checkpoint
from tests.model.checkpoint.published_formats import int8_rounded, write_gguf, write_llama2c, write_meta
from tests.model.oracle import load_checkpoint, logits_of_every_position
from tests.support.transformers_models import (
    GEMMA,
    GEMMA_3,
    GEMMA_3_ROPE,
    GRANITE,
    LLAMA3,
    LONGROPE,
    MINISTRAL3,
    NUM_TOKENS,
    OLMO_3_ROPE,
    PHI_4_MINI,
    YARN,
    expected_logits,
    random_model,
    random_tokens,
)

META = {"intermediate_size": 128, "rms_norm_eps": 1e-5}  # what Meta's rule makes of 48 dimensions


def assert_equals(oracle: Any, path: Path, max_position: int | None = None) -> Tensor:
    """Return our logits, which must be the oracle's."""
    tokens = random_tokens()
    logits = logits_of_every_position(load_checkpoint(path, max_position=max_position), tokens)
    torch.testing.assert_close(logits, expected_logits(oracle, tokens), atol=1e-4, rtol=1e-4)
    return logits


@pytest.mark.parametrize("num_kv_heads", [4, 2, 1])
@pytest.mark.parametrize("tied", [True, False])
def test_the_same_weights_give_the_same_bits_from_every_format(tmp_path: Path, num_kv_heads: int, tied: bool) -> None:
    oracle = random_model("Llama", num_key_value_heads=num_kv_heads, tie_word_embeddings=tied, **META)
    oracle.save_pretrained(tmp_path / "hf")
    write_meta(tmp_path / "meta", oracle)
    write_gguf(tmp_path / "m.gguf", oracle, "llama")
    write_llama2c(tmp_path / "v0.bin", oracle, version=0)
    write_llama2c(tmp_path / "v1.bin", oracle, version=1)
    logits = [assert_equals(oracle, tmp_path / name) for name in ("hf", "meta", "m.gguf", "v0.bin", "v1.bin")]
    assert all(torch.equal(logits[0], others) for others in logits)


@pytest.mark.parametrize("splits_embedding_by_rows", [False, True])
@pytest.mark.parametrize("num_shards", [2, 4])
def test_meta_shards_are_put_together(tmp_path: Path, num_shards: int, splits_embedding_by_rows: bool) -> None:
    oracle = random_model("Llama", num_key_value_heads=4, **META)
    write_meta(tmp_path, oracle, num_shards=num_shards, splits_embedding_by_rows=splits_embedding_by_rows)
    assert_equals(oracle, tmp_path)


def test_llama_3s_scaled_rope_is_metas(tmp_path: Path) -> None:
    rope = LLAMA3 | {"original_max_position_embeddings": 8192}
    oracle = random_model("Llama", rope_parameters=rope, **META)
    write_meta(tmp_path, oracle, use_scaled_rope=True)
    assert_equals(oracle, tmp_path, max_position=NUM_TOKENS)
    assert open_checkpoint(tmp_path).config.max_position == 131_072


@pytest.mark.parametrize(
    ("params", "max_position"),
    [
        ({"norm_eps": 1e-6}, 2048),
        ({"norm_eps": 1e-5}, 4096),
        ({"rope_theta": 1e6}, 16_384),
        ({"rope_theta": 5e5}, 8192),
    ],
)
def test_the_context_of_a_meta_model_follows_from_its_generation(
    tmp_path: Path, params: dict[str, Any], max_position: int
) -> None:
    write_meta(tmp_path, random_model("Llama", **META), **params)
    assert open_checkpoint(tmp_path).config.max_position == max_position


@pytest.mark.parametrize(
    ("hidden_size", "multiple_of", "multiplier", "size"),
    [(4096, 256, 1.0, 11_008), (5120, 256, 1.0, 13_824), (8192, 4096, 1.3, 28_672), (4096, 1024, 1.3, 14_336)],
    ids=["7B", "13B", "2 70B", "3 8B"],
)
def test_the_feed_forward_size_is_that_of_the_published_models(
    hidden_size: int, multiple_of: int, multiplier: float, size: int
) -> None:
    assert feed_forward_size(hidden_size, multiple_of, multiplier) == size


@pytest.mark.parametrize("tied", [True, False])
def test_llama2c_int8_is_dequantized(tmp_path: Path, tied: bool) -> None:
    oracle = random_model("Llama", tie_word_embeddings=tied, **META)
    write_llama2c(tmp_path / "v2.bin", oracle, version=2)
    with torch.no_grad():
        for parameter in oracle.parameters():
            if parameter.dim() > 1:
                parameter.copy_(int8_rounded(parameter, 16))
    assert_equals(oracle, tmp_path / "v2.bin")


@pytest.mark.parametrize(
    ("kind", "architecture", "changes"),
    [
        ("Llama", "llama", {"attention_bias": True}),
        ("Llama", "llama", {"head_dim": 20}),
        ("Mistral", "llama", {"sliding_window": None}),
        ("Mistral", "mistral3", {"sliding_window": None, "head_dim": 16}),
        ("Qwen2", "qwen2", {}),
        ("Qwen2", "qwen2", {"tie_word_embeddings": True}),
        ("Qwen3", "qwen3", {"head_dim": 24}),
        ("SmolLM3", "smollm3", {"num_hidden_layers": 5}),
        ("Olmo2", "olmo2", {}),
        ("Phi3", "phi3", {}),
    ],
)
def test_relatives_of_llama_load_from_gguf(
    tmp_path: Path, kind: str, architecture: str, changes: dict[str, Any]
) -> None:
    oracle = random_model(kind, **changes)
    write_gguf(tmp_path / "m.gguf", oracle, architecture)
    assert_equals(oracle, tmp_path / "m.gguf")


def test_a_window_in_a_gguf_is_kept(tmp_path: Path) -> None:
    oracle = random_model("Mistral", sliding_window=17)
    write_gguf(tmp_path / "m.gguf", oracle, "llama", attention__sliding_window=17)
    assert_equals(oracle, tmp_path / "m.gguf")


def test_the_scale_of_queries_in_a_gguf_is_that_of_transformers(tmp_path: Path) -> None:
    oracle = random_model("Ministral3", rope_parameters=MINISTRAL3, head_dim=16)
    fields: dict[str, Any] = {
        "rope__scaling__type": "yarn",
        "rope__scaling__factor": 4.0,
        "rope__scaling__original_context_length": 32,
        "rope__scaling__yarn_log_multiplier": 1.0,
        "attention__temperature_scale": 0.25,  # exact in float32, as the file has it
    }
    oracle.config.rope_parameters["llama_4_scaling_beta"] = 0.25
    oracle.save_pretrained(tmp_path / "hf")
    write_gguf(tmp_path / "m.gguf", oracle, "mistral3", **fields)
    assert torch.equal(assert_equals(oracle, tmp_path / "m.gguf"), assert_equals(oracle, tmp_path / "hf"))
    write_gguf(tmp_path / "llama.gguf", oracle, "llama", **fields)
    with pytest.raises(UnsupportedModel, match="scales queries by their position, which is supported for mistral3"):
        open_checkpoint(tmp_path / "llama.gguf")
    del fields["rope__scaling__original_context_length"]
    write_gguf(tmp_path / "m.gguf", oracle, "mistral3", **fields)
    with pytest.raises(UnsupportedModel, match="scale of queries by position must not be negative, and its length"):
        open_checkpoint(tmp_path / "m.gguf")


def test_gemma_2_has_the_same_bits_from_a_gguf(tmp_path: Path) -> None:
    oracle = random_model("Gemma2", **GEMMA)
    oracle.save_pretrained(tmp_path / "hf")
    fields: dict[str, Any] = {
        "attention__sliding_window": 17,
        "attn_logit_softcapping": 5.0,
        "final_logit_softcapping": 3.0,
    }
    write_gguf(tmp_path / "m.gguf", oracle, "gemma2", **fields)
    config = replace(open_checkpoint(tmp_path / "m.gguf").config, rms_norm_eps=1e-6)  # float32 in the file
    assert config == open_checkpoint(tmp_path / "hf").config
    assert torch.equal(assert_equals(oracle, tmp_path / "m.gguf"), assert_equals(oracle, tmp_path / "hf"))
    narrow = [load_checkpoint(tmp_path / name, torch.bfloat16) for name in ("hf", "m.gguf")]
    assert narrow[0].norm.weight.dtype == torch.float32
    ours, theirs = (logits_of_every_position(model, random_tokens()) for model in narrow)
    assert torch.equal(ours, theirs)


def test_gemma_3_has_the_same_bits_from_a_gguf(tmp_path: Path) -> None:
    rope = GEMMA_3_ROPE | {"sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0}}
    oracle = random_model("Gemma3", **GEMMA_3 | {"rope_parameters": rope})
    oracle.save_pretrained(tmp_path / "hf")
    fields: dict[str, Any] = {
        "attention__sliding_window": 17,
        "rope__scaling__type": "linear",
        "rope__scaling__factor": 8.0,
    }
    write_gguf(tmp_path / "m.gguf", oracle, "gemma3", **fields)
    config = replace(open_checkpoint(tmp_path / "m.gguf").config, rms_norm_eps=1e-6)  # float32 in the file
    assert config == open_checkpoint(tmp_path / "hf").config
    assert torch.equal(assert_equals(oracle, tmp_path / "m.gguf"), assert_equals(oracle, tmp_path / "hf"))


@pytest.mark.parametrize(
    ("architecture", "num_layers", "fields", "multiplier"),
    [
        ("gemma2", 26, {"embedding_length": 2304, "attention.key_length": 256}, None),
        ("gemma2", 46, {"embedding_length": 4608, "attention.head_count": 32, "attention.key_length": 128}, 144**-0.5),
        ("gemma3", 62, {"embedding_length": 5376, "attention.head_count": 32, "attention.key_length": 128}, 168**-0.5),
        ("gemma3", 34, {"attention.key_length": 256, "attention.scale": 0.125}, 0.125),
    ],
    ids=["2B", "2 27B", "3 27B", "stated"],
)
def test_the_factor_of_gemmas_scores_follows_from_the_size(
    architecture: str, num_layers: int, fields: dict[str, float], multiplier: float | None
) -> None:
    known = {"block_count": num_layers, **fields}
    flags = gemma_gguf_flags(architecture, "m.gguf", known.get)
    assert flags["attention_multiplier"] == multiplier


def test_which_layers_have_a_window_is_read_from_a_gguf(tmp_path: Path) -> None:
    oracle = random_model("Gemma3", **GEMMA_3)
    path = tmp_path / "m.gguf"

    def full_layers(**fields: object) -> tuple[int, ...]:
        write_gguf(path, oracle, "gemma3", attention__sliding_window=17, rope__freq_base_swa=300.0, **fields)
        config = open_checkpoint(path).config
        assert config.window_rope_theta == 300.0
        return config.full_layers

    assert full_layers(attention__sliding_window_pattern=3) == (2, 5)
    assert full_layers(attention__sliding_window_pattern=[False, *[True] * 5, False]) == (0, 6)
    for pattern, words in (([True] * 6, "a list of 7 times true or false"), (0, "7 layers, one in 0 without a window")):
        with pytest.raises(BrokenCheckpoint, match=words):
            full_layers(attention__sliding_window_pattern=pattern)
    write_gguf(path, oracle, "gemma3")
    config = open_checkpoint(path).config
    assert (config.sliding_window, config.window_rope_theta) == (None, None)


def test_olmo_3_has_the_same_bits_from_a_gguf(tmp_path: Path) -> None:
    oracle = random_model("Olmo3", num_hidden_layers=5, sliding_window=17, rope_parameters=OLMO_3_ROPE)
    oracle.save_pretrained(tmp_path / "hf")
    fields: dict[str, Any] = {
        "attention__sliding_window": 17,
        "attention__sliding_window_pattern": [True, True, True, False, True],
        "rope__scaling__type": "yarn",
        "rope__scaling__factor": 4.0,
        "rope__scaling__original_context_length": 32,
    }
    write_gguf(tmp_path / "m.gguf", oracle, "olmo2", **fields)
    assert torch.equal(assert_equals(oracle, tmp_path / "m.gguf"), assert_equals(oracle, tmp_path / "hf"))


def test_the_two_lists_of_longrope_in_a_gguf_are_chosen_by_the_served_length(tmp_path: Path) -> None:
    oracle = random_model("Phi3", **PHI_4_MINI)
    factor = math.sqrt(1 + math.log(128 / 32) / math.log(32))
    fields: dict[str, Any] = {
        "rope__dimension_count": 8,
        "rope__scaling__original_context_length": 32,
        "rope__scaling__attn_factor": factor,
        "rope_factors_short": LONGROPE["short_factor"],
        "rope_factors_long": LONGROPE["long_factor"],
    }
    write_gguf(tmp_path / "m.gguf", oracle, "phi3", **fields)
    assert_equals(oracle, tmp_path / "m.gguf")
    oracle.save_pretrained(tmp_path / "hf")
    tokens = random_tokens(32)
    for name in ("hf", "m.gguf"):  # with no text beyond the original length
        logits = logits_of_every_position(load_checkpoint(tmp_path / name, max_position=32), tokens)
        torch.testing.assert_close(logits, expected_logits(oracle, tokens), atol=1e-4, rtol=1e-4)
    write_gguf(tmp_path / "half.gguf", oracle, "phi3", **fields | {"rope_factors_long": [1.0]})
    with pytest.raises(BrokenCheckpoint, match=r"rope_factors_long\.weight must have 4 positive numbers"):
        open_checkpoint(tmp_path / "half.gguf")
    del fields["rope_factors_long"]
    write_gguf(tmp_path / "one.gguf", oracle, "phi3", **fields)
    with pytest.raises(UnsupportedModel, match="has divisors of LongRoPE, which are supported for phi3, and in pairs"):
        open_checkpoint(tmp_path / "one.gguf")


def test_the_factors_of_granite_in_a_gguf_are_those_of_transformers(tmp_path: Path) -> None:
    oracle = random_model("Granite", **GRANITE)
    oracle.save_pretrained(tmp_path / "hf")
    scales = {"embedding_scale": 12.0, "residual_scale": 0.22, "attention__scale": 0.25, "logit_scale": 0.5}
    write_gguf(tmp_path / "m.gguf", oracle, "granite", **scales)
    assert_equals(oracle, tmp_path / "m.gguf")
    config, expected = (open_checkpoint(tmp_path / name).config for name in ("m.gguf", "hf"))
    assert config.embedding_multiplier == pytest.approx(12 / 0.22)
    assert config.attention_multiplier == expected.attention_multiplier
    write_gguf(tmp_path / "none.gguf", oracle, "granite", **scales, rope__scaling__finetuned=False)
    with pytest.raises(UnsupportedModel, match="has no RoPE in any layer"):
        open_checkpoint(tmp_path / "none.gguf")


@pytest.mark.parametrize(
    ("rope", "fields"),
    [
        (
            {"rope_type": "linear", "rope_theta": 1000.0, "factor": 3.0},
            {"rope__scaling__type": "linear", "rope__scaling__factor": 3.0},
        ),
        (
            YARN,
            {
                "rope__scaling__type": "yarn",
                "rope__scaling__factor": 4.0,
                "rope__scaling__original_context_length": 32,
            },
        ),
    ],
)
def test_a_rope_scaling_in_a_gguf_is_that_of_transformers(
    tmp_path: Path, rope: dict[str, Any], fields: dict[str, Any]
) -> None:
    oracle = random_model("Llama", rope_parameters=rope)
    write_gguf(tmp_path / "m.gguf", oracle, "llama", **fields)
    assert_equals(oracle, tmp_path / "m.gguf")


def test_rope_divisors_in_a_gguf_are_llama_3s_scaling(tmp_path: Path) -> None:
    oracle = random_model("Llama", rope_parameters=LLAMA3)
    frequencies = 5000.0 ** -(torch.arange(0, 12, 2) / 12)
    divisors = frequencies / oracle.model.rotary_emb.inv_freq
    write_gguf(tmp_path / "m.gguf", oracle, "llama", rope_freqs=divisors.tolist())
    assert_equals(oracle, tmp_path / "m.gguf")


def test_a_meta_folder_with_a_gap_between_its_shards_is_refused(tmp_path: Path) -> None:
    write_meta(tmp_path, random_model("Llama", num_key_value_heads=4, **META), num_shards=4)
    (tmp_path / "consolidated.01.pth").unlink()
    with pytest.raises(BrokenCheckpoint, match=r"lacks consolidated\.01\.pth"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("content", "error", "words"),
    [
        ({"norm.weight": torch.ones(48, dtype=torch.int32)}, UnsupportedModel, "type torch.int32"),
        ({"norm.weight": [1.0]}, BrokenCheckpoint, "is not a dense tensor"),
        ({"norm.weight": torch.ones(1).expand(10**9)}, BrokenCheckpoint, "states more values"),
        ({7: torch.ones(1)}, BrokenCheckpoint, "is not a dense tensor"),
        ({"norm.weight": torch.eye(48).to_sparse()}, BrokenCheckpoint, "is not a dense tensor"),
        ([torch.ones(1)], BrokenCheckpoint, "does not hold named tensors"),
        ({}, BrokenCheckpoint, "does not hold named tensors"),
        (Path("/tmp"), BrokenCheckpoint, "not a valid file of tensors"),
    ],
)
def test_threat_22_a_pth_file_of_anything_but_dense_tensors_is_refused(
    tmp_path: Path, content: Any, error: type[ValueError], words: str
) -> None:
    write_meta(tmp_path, random_model("Llama", **META))
    torch.save(content, tmp_path / "consolidated.00.pth")
    with pytest.raises(error, match=words) as raised:
        open_checkpoint(tmp_path)
    assert "consolidated.00.pth" in str(raised.value)


@pytest.mark.parametrize(
    ("at", "value", "words"),
    [
        (0, 0, "not a llama2.c checkpoint"),
        (8, 2**30, "too short for its layers"),
        (12, 5, "not a llama2.c checkpoint"),
        (4, 2**31 - 1, "should have"),
        (24, 129, "should have"),
    ],
)
def test_a_llama2c_header_that_does_not_fit_its_file_is_refused(
    tmp_path: Path, at: int, value: int, words: str
) -> None:
    path = tmp_path / "m.bin"
    write_llama2c(path, random_model("Llama", **META), version=0)
    content = bytearray(path.read_bytes())
    content[at : at + 4] = struct.pack("<i", value)
    path.write_bytes(content)
    with pytest.raises(BrokenCheckpoint, match=words):
        open_checkpoint(path)


def test_a_later_version_of_llama2c_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.bin"
    path.write_bytes(struct.pack("<Ii", 0x616B3432, 3).ljust(300, b"\1"))
    with pytest.raises(UnsupportedModel, match="version 3; supported are 0, 1 and 2"):
        open_checkpoint(path)


def write_split_gguf(folder: Path, oracle: Any) -> list[Path]:
    """Write a model as three files, as gguf-split does: metadata in the first one, tensors in all."""
    write_gguf(folder / "whole.gguf", oracle, "llama")
    reader = gguf.GGUFReader(folder / "whole.gguf")
    paths = [folder / f"m-{number:05}-of-00003.gguf" for number in (1, 2, 3)]
    for number, path in enumerate(paths):
        writer = gguf.GGUFWriter(path, "llama")
        if number == 0:
            for field in reader.fields.values():
                if field.name.startswith("llama.") or field.name.startswith("tokenizer."):
                    sub_type = field.types[1] if len(field.types) > 1 else None
                    writer.add_key_value(field.name, field.contents(), field.types[0], sub_type)
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", 3)
        writer.add_int32("split.tensors.count", len(reader.tensors))
        for tensor in reader.tensors[number::3]:
            writer.add_tensor(tensor.name, np.array(tensor.data))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return paths


def test_a_gguf_model_in_several_files_is_one_model(tmp_path: Path) -> None:
    oracle = random_model("Llama")
    first, second, third = write_split_gguf(tmp_path, oracle)
    assert_equals(oracle, first)
    with pytest.raises(BrokenCheckpoint, match="Give the first one"):
        open_checkpoint(second)
    renamed = third.read_bytes()
    name = next(name for name in read_gguf_header(second).tensors if len(name) < 30)
    other = next(one for one in read_gguf_header(third).tensors if len(one) == len(name))
    third.write_bytes(renamed.replace(other.encode(), name.encode()))
    with pytest.raises(BrokenCheckpoint, match=f"{name} is in another file"):
        open_checkpoint(first)
    third.write_bytes(second.read_bytes())
    with pytest.raises(BrokenCheckpoint, match="is not file 3 of 3"):
        open_checkpoint(first)
    third.unlink()
    with pytest.raises(OSError, match="00003-of-00003"):
        open_checkpoint(first)
