"""Facts that a Hugging Face folder states twice: what transformers takes is taken, and one line names both."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from caravan.model.checkpoint import BrokenCheckpoint
from caravan.model.config import UnsupportedModel
from caravan.model.loader import open_checkpoint
from tests.model.checkpoint.published_formats import write_meta
from tests.model.oracle import load_checkpoint, logits_of_every_position
from tests.support.transformers_models import edit, expected_logits, random_model, random_tokens

DEFAULT = {"rope_type": "default", "rope_theta": 200.0}
LINEAR = {"rope_type": "linear", "factor": 2.0}


def assert_equals_transformers(folder: Path) -> Any:
    """Assert that our logits are those of transformers for this folder, and return its model."""
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
    tokens = random_tokens()
    ours = logits_of_every_position(load_checkpoint(folder), tokens)
    torch.testing.assert_close(ours, expected_logits(theirs, tokens), atol=1e-4, rtol=1e-4)
    return theirs


def unexpected_keys(folder: Path) -> set[str]:
    """Return the tensors that transformers does not ignore in silence."""
    loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    keys: set[str] = loaded[1]["unexpected_keys"]
    return keys


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"rope_parameters": DEFAULT, "rope_theta": 777.0}, "rope_theta among the RoPE parameters"),
        ({"rope_parameters": DEFAULT, "rope_theta": 200.0}, ""),
        ({"rope_parameters": DEFAULT, "rope_scaling": LINEAR}, "rope_scaling in"),
        ({"rope_parameters": DEFAULT, "rope_scaling": LINEAR, "rope_theta": 777.0}, "rope_scaling in"),
        ({"rope_parameters": DEFAULT, "rope_scaling": {}}, ""),
        (
            {"rope_parameters": "remove", "rope_scaling": LINEAR | {"rope_theta": 5.0}, "rope_theta": 777.0},
            "rope_theta",
        ),
    ],
)
def test_older_and_newer_keys_of_rope_are_read_as_transformers_reads_them(
    tmp_path: Path, changes: dict[str, Any], line: str, caplog: pytest.LogCaptureFixture
) -> None:
    random_model("Llama").save_pretrained(tmp_path)
    edit(tmp_path / "config.json", **changes)
    assert_equals_transformers(tmp_path)
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("caravan.model.")]
    assert len(lines) <= 1
    assert bool(lines) == bool(line)
    assert all(line in text and len(text) < 600 for text in lines)


def test_one_file_wins_over_an_index_and_its_files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    oracle = random_model("Llama")
    oracle.save_pretrained(tmp_path)
    with torch.no_grad():
        oracle.model.norm.weight.fill_(3.0)
    oracle.save_pretrained(tmp_path / "sharded", max_shard_size="60KB")
    for file in (tmp_path / "sharded").glob("model*"):
        shutil.copy(file, tmp_path)
    theirs = assert_equals_transformers(tmp_path)
    assert not torch.equal(theirs.model.norm.weight, oracle.model.norm.weight)
    assert "both model.safetensors and model.safetensors.index.json; the first one is used" in caplog.text


@pytest.mark.parametrize("change", ["left out", "in another file"])
def test_what_is_in_the_files_wins_over_the_index(
    tmp_path: Path, change: str, caplog: pytest.LogCaptureFixture
) -> None:
    random_model("Llama").save_pretrained(tmp_path, max_shard_size="60KB")
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    holder = index["weight_map"].pop("model.norm.weight")
    if change == "in another file":
        index["weight_map"]["model.norm.weight"] = next(f for f in index["weight_map"].values() if f != holder)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert_equals_transformers(tmp_path)
    assert "the index is wrong about the tensor model.norm.weight; what is in the files is used" in caplog.text


@pytest.mark.parametrize("kind", ["Llama", "Mistral", "Qwen2", "Qwen3"])
@pytest.mark.parametrize("stated", [False, "remove"])
def test_a_folder_without_output_head_whose_embeddings_are_not_tied_is_refused(
    tmp_path: Path, kind: str, stated: Any
) -> None:
    random_model(kind, tie_word_embeddings=True).save_pretrained(tmp_path)
    open_checkpoint(tmp_path)
    edit(tmp_path / "config.json", tie_word_embeddings=stated)
    with pytest.raises(BrokenCheckpoint, match=r"no lm_head\.weight, though config\.json says tie_word_embeddings"):
        open_checkpoint(tmp_path)


def test_a_head_in_the_files_wins_over_tie_word_embeddings(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    random_model("Llama").save_pretrained(tmp_path)
    edit(tmp_path / "config.json", tie_word_embeddings=True)
    assert_equals_transformers(tmp_path)
    assert "the files have lm_head.weight, which is used" in caplog.text


@pytest.mark.parametrize("kind", ["Llama", "Mistral", "Qwen2", "Qwen3"])
@pytest.mark.parametrize("stated", [None, "remove", []])
def test_the_model_type_is_enough_to_know_the_architecture(tmp_path: Path, kind: str, stated: Any) -> None:
    random_model(kind).save_pretrained(tmp_path)
    edit(tmp_path / "config.json", architectures=stated)
    assert_equals_transformers(tmp_path)


def test_the_model_type_wins_over_the_architecture(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    random_model("Llama").save_pretrained(tmp_path)
    edit(tmp_path / "config.json", architectures=["Qwen2ForCausalLM"])
    assert type(assert_equals_transformers(tmp_path)).__name__ == "LlamaForCausalLM"
    assert "is 'llama', but architectures there is 'Qwen2ForCausalLM'; the first one is used" in caplog.text


def test_a_rotary_table_is_ignored_wherever_transformers_ignores_it(tmp_path: Path) -> None:
    random_model("Llama").save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    names = ["model.rotary_emb.inv_freq", "rotary_emb.inv_freq", "model.layers.1.self_attn.rotary_emb.inv_freq"]
    save_file(load_file(path) | {name: torch.ones(6) for name in names}, path)
    assert not unexpected_keys(tmp_path)
    assert_equals_transformers(tmp_path)


@pytest.mark.parametrize("name", ["masked_bias", "bias"])
def test_a_leftover_that_transformers_does_not_ignore_is_refused(tmp_path: Path, name: str) -> None:
    random_model("Llama").save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    leftover = f"model.layers.0.self_attn.{name}"
    save_file(load_file(path) | {leftover: torch.ones(1)}, path)
    assert unexpected_keys(tmp_path) == {leftover}
    with pytest.raises(UnsupportedModel, match="which this architecture does not have"):
        open_checkpoint(tmp_path)


def test_a_rotary_table_of_a_meta_model_is_ignored_in_every_layer(tmp_path: Path) -> None:
    write_meta(tmp_path, random_model("Llama", intermediate_size=128, rms_norm_eps=1e-5))
    path = tmp_path / "consolidated.00.pth"
    tensors = torch.load(path)
    tensors |= {"rope.freqs": torch.ones(6), "layers.0.attention.inner_attention.rope.freqs": torch.ones(6)}
    torch.save(tensors, path)
    open_checkpoint(tmp_path)
