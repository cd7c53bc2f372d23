"""PEFT folders: what is read, and what is refused by name. Threat 41: a damaged or hostile adapter."""

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from caravan.model.checkpoint import BrokenCheckpoint
from caravan.model.checkpoint.peft import open_adapter
from caravan.model.checkpoint.peft_config import MAX_RANK, read_lora_config
from caravan.model.config import UnsupportedModel
from tests.support.lora_folders import PREFIX, change_config, change_tensors, write_adapter

MODULE = "model.layers.1.self_attn.q_proj"
A, B = f"{MODULE}.lora_A.weight", f"{MODULE}.lora_B.weight"


class Projections(torch.nn.Module):
    """Two layers with the names of a model's."""

    def __init__(self) -> None:
        super().__init__()
        self.model = torch.nn.Module()
        self.model.layers = torch.nn.ModuleList(torch.nn.Module() for _ in range(2))
        for layer in self.model.layers:
            layer.self_attn = torch.nn.Module()
            layer.self_attn.q_proj = torch.nn.Linear(6, 10, bias=False)
            layer.self_attn.v_proj = torch.nn.Linear(6, 5, bias=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_adapter(tmp_path / "adapter", Projections())


def test_shapes_ranks_and_scales_are_read(folder: Path) -> None:
    adapter = open_adapter(folder)
    assert adapter.shapes == {
        f"model.layers.{layer}.self_attn.{kind}_proj": shape
        for layer in range(2)
        for kind, shape in (("q", (10, 6, 4)), ("v", (5, 6, 4)))
    }
    assert adapter.num_parameters == 2 * 4 * (10 + 6 + 5 + 6)
    assert adapter.config.scale_of(MODULE) == 2
    assert adapter.config.base_model == "org/tiny"
    a, b = adapter.factors(MODULE)
    assert (a.shape, b.shape) == ((4, 6), (10, 4))


def test_defaults_are_those_of_peft(folder: Path) -> None:
    change_config(folder, r=None, lora_alpha=None, rank_pattern=None, target_modules=None, bias=None)
    config = read_lora_config(folder / "adapter_config.json")
    assert (config.rank, config.alpha, config.scale_of(MODULE), config.targets) == (8, 8, 1, None)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ({"q_proj": 1}, 1),
        ({MODULE: 1}, 1),
        ({f"^{MODULE}": 1}, 1),
        ({r"layers\.\d+\.self_attn\.q_proj": 1}, 1),
        ({"model.*q_proj": 1}, 1),
        ({"proj": 1, "v_proj": 2, "layers.0.self_attn.q_proj": 3}, 4),  # no end of the name after a dot
        ({"self_attn.q_proj": 2, "q_proj": 1}, 2),  # the first match wins
    ],
)
def test_a_pattern_matches_the_end_of_a_name(folder: Path, pattern: dict[str, int], expected: int) -> None:
    change_config(folder, rank_pattern=pattern)
    assert read_lora_config(folder / "adapter_config.json").rank_of(MODULE) == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3"}, "of the type 'IA3'; only LORA"),
        ({"peft_type": "PROMPT_TUNING"}, "PROMPT_TUNING"),
        ({"use_dora": True}, "DoRA"),
        ({"bias": "lora_only"}, "trained biases"),
        ({"lora_bias": True}, "sets lora_bias"),
        ({"modules_to_save": ["lm_head"]}, "sets modules_to_save"),
        ({"fan_in_fan_out": True}, "sets fan_in_fan_out"),
        ({"layer_replication": [[0, 2], [1, 2]]}, "sets layer_replication"),
        ({"alora_invocation_tokens": [1]}, "sets alora_invocation_tokens"),
        ({"trainable_token_indices": [1]}, "sets trainable_token_indices"),
        ({"target_parameters": ["x"]}, "sets target_parameters"),
        ({"use_of_tomorrow": {"a": 1}}, "sets use_of_tomorrow"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights is 'pissa_niter_4'"),
        ({"init_lora_weights": "olora"}, "plain LoRA"),
        ({"init_lora_weights": 1}, "init_lora_weights is 1"),
        ({"r": 0}, "r is 0"),
        ({"r": 10**12}, f"ranks from 1 to {MAX_RANK}"),
        ({"rank_pattern": {"q_proj": MAX_RANK + 1}}, "q_proj is 1025"),
        ({"rank_pattern": {"(a+)+b": 2}}, "rank_pattern has the key"),
        ({"alpha_pattern": {"a|b": 2}}, "alpha_pattern has the key"),
        ({"alpha_pattern": {".*.*q": 2}}, "one placeholder"),
        ({"alpha_pattern": {"q" * 257: 2}}, "alpha_pattern has the key"),
    ],
    ids=str,
)
def test_what_is_not_plain_lora_is_refused_by_name(folder: Path, changes: dict[str, Any], message: str) -> None:
    change_config(folder, **changes)
    with pytest.raises(UnsupportedModel) as caught:
        open_adapter(folder)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"peft_type": 5},
        {"r": 4.5},
        {"r": True},
        {"lora_alpha": "8"},
        {"use_rslora": "yes"},
        {"use_dora": 1},
        {"rank_pattern": [1]},
        {"rank_pattern": {"q_proj": "2"}},
        {"alpha_pattern": {"q_proj": [2]}},
        {"alpha_pattern": {str(number): 1 for number in range(3000)}},
        {"target_modules": [["q_proj"]]},
        {"base_model_name_or_path": 3},
    ],
    ids=lambda changes: str(changes)[:40],
)
def test_threat_41_fields_of_another_kind_are_errors(folder: Path, changes: dict[str, Any]) -> None:
    change_config(folder, **changes)
    with pytest.raises(BrokenCheckpoint, match="adapter_config.json"):
        open_adapter(folder)


@pytest.mark.parametrize("text", ["", "[]", "{", "\xff", '{"r": NaN, "peft_type": "LORA"}', "[" * 10**5, "{}"])
def test_threat_41_a_damaged_configuration_is_an_error(folder: Path, text: str) -> None:
    (folder / "adapter_config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(BrokenCheckpoint, match="adapter_config.json"):
        open_adapter(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({A: None}, "has lora_B, but not the other matrix"),
        ({B: None}, "has lora_A, but not the other matrix"),
        ({A: torch.zeros(3, 6)}, r"matrices of the shapes \[3, 6\] and \[10, 4\]"),
        ({A: torch.zeros(3, 6), B: torch.zeros(10, 3)}, "the rank 3; by adapter_config.json it is 4"),
        ({A: torch.zeros(4, 0)}, "matrices of the shapes"),
        ({A: torch.zeros(24)}, "matrices of the shapes"),
        ({A: torch.full((4, 6), torch.nan)}, r"q_proj\.lora_A\.weight holds values that are not finite"),
        ({B: torch.full((10, 4), -torch.inf)}, r"q_proj\.lora_B\.weight holds values that are not finite"),
        ({MODULE.replace("q_", "z_") + f".lora_{x}.weight": torch.ones(4, 4) for x in "AB"}, "not among the target"),
    ],
)
def test_threat_41_damaged_tensors_are_errors(folder: Path, changes: dict[str, Tensor | None], message: str) -> None:
    change_tensors(folder, changes)
    with pytest.raises(BrokenCheckpoint, match=message):
        open_adapter(folder)


@pytest.mark.parametrize(
    "name",
    [
        f"{MODULE}.lora_magnitude_vector.weight",
        f"{MODULE}.lora_A.default.weight",
        f"{MODULE}.lora_B.bias",
        "model.embed_tokens.lora_embedding_A",
        "lm_head.weight",
        "\n[31m" * 1000,
    ],
    ids=lambda name: name[-20:],
)
def test_other_tensors_are_refused_by_name(folder: Path, name: str) -> None:
    change_tensors(folder, {name: torch.ones(4, 4)})
    with pytest.raises(UnsupportedModel, match="plain LoRA of linear layers does not have") as caught:
        open_adapter(folder)
    assert len(str(caught.value)) < 400 + len(str(folder))
    assert str(caught.value).isprintable()


def test_names_without_pefts_prefix_and_other_types_are_refused(folder: Path) -> None:
    change_tensors(folder, {A: torch.ones(4, 6, dtype=torch.int8)})
    with pytest.raises(UnsupportedModel, match="has the type I8"):
        open_adapter(folder)
    (folder / "adapter_model.safetensors").write_bytes(
        (folder / "adapter_model.safetensors").read_bytes().replace(PREFIX.encode(), b"bade_model.model.")
    )
    with pytest.raises(UnsupportedModel, match="plain LoRA|type"):
        open_adapter(folder)


@pytest.mark.parametrize("end", [0, 4, 100, -1])
def test_threat_41_a_file_that_is_cut_off_is_an_error(folder: Path, end: int) -> None:
    file = folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:end])
    with pytest.raises(BrokenCheckpoint, match="not a valid safetensors file"):
        open_adapter(folder)


def test_threat_41_flipped_bytes_of_the_head_are_errors_or_another_adapter(folder: Path) -> None:
    file = folder / "adapter_model.safetensors"
    whole = file.read_bytes()
    for place in range(0, 600, 7):
        for change in (1, 128, 255):
            file.write_bytes(whole[:place] + bytes([whole[place] ^ change]) + whole[place + 1 :])
            try:
                open_adapter(folder)
            except (BrokenCheckpoint, UnsupportedModel) as error:
                assert "\n" not in str(error)


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_threat_41_pickles_are_not_read(folder: Path, tmp_path: Path) -> None:
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    with pytest.raises(UnsupportedModel, match=r"adapter_model\.bin, which can run code"):
        open_adapter(folder)
    assert not (tmp_path / "sprung").exists()


def test_threat_41_links_out_of_the_folder_are_not_followed(folder: Path, tmp_path: Path) -> None:
    file = folder / "adapter_config.json"
    elsewhere = tmp_path / "elsewhere.json"
    file.rename(elsewhere)
    file.symlink_to(elsewhere)
    with pytest.raises(BrokenCheckpoint, match="is a link out of its folder"):
        open_adapter(folder)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_missing_file_is_named_and_a_pipe_is_not_read(folder: Path, name: str) -> None:
    (folder / name).unlink()
    for _ in range(2):
        with pytest.raises(BrokenCheckpoint, match=f"has no {name}"):
            open_adapter(folder)
        if not (folder / name).exists():
            os.mkfifo(folder / name)


def test_a_path_that_is_no_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BrokenCheckpoint, match="is not a folder"):
        open_adapter(tmp_path / "none")


def test_a_file_without_tensors_is_an_error(folder: Path) -> None:
    text = json.dumps({}).encode()
    (folder / "adapter_model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)
    with pytest.raises(BrokenCheckpoint, match="has no tensors"):
        open_adapter(folder)
