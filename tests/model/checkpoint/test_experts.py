"""Mixtures of experts in files: from every format the same bits, which are those of transformers."""

from pathlib import Path
from typing import Any

import pytest
import torch

from caravan.model.checkpoint import BrokenCheckpoint
from caravan.model.checkpoint.checkpoint import num_parameters
from caravan.model.checkpoint.experts import num_read_parameters
from caravan.model.config import UnsupportedModel
from caravan.model.loader import open_checkpoint
from tests.model.checkpoint.published_formats import write_gguf
from tests.model.oracle import load_checkpoint, logits_of_every_position
from tests.support.transformers_models import (
    MIXTRAL,
    OLMOE,
    QWEN3_MOE,
    edit,
    expected_logits,
    random_model,
    random_tokens,
)


@pytest.mark.parametrize(
    ("kind", "architecture", "changes"),
    [
        ("Mixtral", "llama", MIXTRAL),
        ("Qwen3Moe", "qwen3moe", QWEN3_MOE | {"norm_topk_prob": True}),
        ("Olmoe", "olmoe", OLMOE),
    ],
)
def test_matrices_of_their_own_and_stacked_ones_give_the_same_bits(
    tmp_path: Path, kind: str, architecture: str, changes: dict[str, Any]
) -> None:
    oracle = random_model(kind, **changes)
    oracle.save_pretrained(tmp_path / "own")
    oracle.save_pretrained(tmp_path / "stacked", save_original_format=False)
    write_gguf(tmp_path / "m.gguf", oracle, architecture)
    assert not any(".experts.0." in name for name in open_checkpoint(tmp_path / "stacked").shapes)
    tokens = random_tokens(40)
    own, stacked, gguf = (
        logits_of_every_position(load_checkpoint(tmp_path / name), tokens) for name in ("own", "stacked", "m.gguf")
    )
    torch.testing.assert_close(own, expected_logits(oracle, tokens), atol=1e-4, rtol=1e-4)
    assert torch.equal(own, stacked)
    assert torch.equal(own, gguf)


@pytest.mark.parametrize(
    ("kind", "changes", "fields", "error", "words"),
    [
        ("Qwen3Moe", QWEN3_MOE, {"mlp_only_layers": [0]}, UnsupportedModel, "has layers without experts"),
        ("Qwen3Moe", QWEN3_MOE, {"decoder_sparse_step": 2}, UnsupportedModel, "has layers without experts"),
        ("Olmoe", OLMOE, {"clip_qkv": 8.0}, UnsupportedModel, "clips queries, keys and values"),
        ("Mixtral", MIXTRAL, {"num_local_experts": 0}, UnsupportedModel, "A mixture of 0 experts"),
        ("Mixtral", MIXTRAL, {"num_experts_per_tok": 5}, UnsupportedModel, "Each token has 5 of 4 experts"),
        ("Mixtral", MIXTRAL, {"num_local_experts": 5}, BrokenCheckpoint, r"lacks .*experts\.4\.w1\.weight"),
        ("Mixtral", MIXTRAL, {"num_local_experts": 3}, UnsupportedModel, r"has .*experts\.3\.w1\.weight"),
        ("Mixtral", MIXTRAL, {"num_local_experts": 10**9}, BrokenCheckpoint, "should have 2000000000 experts"),
        ("Llama", {}, {"model_type": "dbrx", "architectures": None}, UnsupportedModel, "model_type 'dbrx'"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(
    tmp_path: Path,
    kind: str,
    changes: dict[str, Any],
    fields: dict[str, Any],
    error: type[ValueError],
    words: str,
) -> None:
    random_model(kind, **changes).save_pretrained(tmp_path)
    edit(tmp_path / "config.json", **fields)
    with pytest.raises(error, match=words):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"expert_gating_func": 2}, "by another function than softmax"),
        ({"expert_shared_count": 1}, "experts that all tokens share"),
        ({"expert_weights_scale": 2.5}, "scales the weights of experts"),
    ],
)
def test_what_a_gguf_says_of_its_experts_is_supported_or_refused(
    tmp_path: Path, fields: dict[str, Any], words: str
) -> None:
    write_gguf(tmp_path / "m.gguf", random_model("Mixtral", **MIXTRAL), "llama", **fields)
    with pytest.raises(UnsupportedModel, match=words):
        open_checkpoint(tmp_path / "m.gguf")


def test_whether_weights_add_up_to_1_follows_from_the_architecture_unless_a_gguf_says_it(tmp_path: Path) -> None:
    oracle = random_model("Olmoe", **OLMOE, norm_topk_prob=True)
    write_gguf(tmp_path / "silent.gguf", oracle, "olmoe")
    assert not open_checkpoint(tmp_path / "silent.gguf").config.normalizes_expert_weights
    write_gguf(tmp_path / "m.gguf", oracle, "olmoe", expert_weights_norm=True)
    tokens = random_tokens(20)
    logits = logits_of_every_position(load_checkpoint(tmp_path / "m.gguf"), tokens)
    torch.testing.assert_close(logits, expected_logits(oracle, tokens), atol=1e-4, rtol=1e-4)


def test_stacked_experts_of_another_shape_are_refused(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", random_model("Mixtral", **MIXTRAL), "llama")
    content = (tmp_path / "m.gguf").read_bytes()
    key = b"llama.expert_count"
    at = content.index(key) + len(key) + 4  # after the type of the value
    assert content[at] == 4
    (tmp_path / "m.gguf").write_bytes(content[:at] + bytes([2]) + content[at + 1 :])
    with pytest.raises(BrokenCheckpoint, match=r"blk\.0\.ffn_gate_inp\.weight has the shape \[4, 48\]"):
        open_checkpoint(tmp_path / "m.gguf")


def test_a_step_reads_the_experts_that_its_tokens_choose(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", random_model("Mixtral", **MIXTRAL), "llama")
    checkpoint = open_checkpoint(tmp_path / "m.gguf")
    total, expert = num_parameters(checkpoint), 3 * 48 * 80
    read = [num_read_parameters(checkpoint.config, total, num_tokens) for num_tokens in (1, 2, 100)]
    assert read == [total - 2 * 2 * expert, total - 2 * expert, total]  # of two layers; 4 experts, 2 for a token
