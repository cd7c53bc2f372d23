"""Meta's folders that do not fit together are refused by name."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from caravan.model.checkpoint import BrokenCheckpoint
from caravan.model.config import UnsupportedModel
from caravan.model.loader import open_checkpoint
from tests.model.checkpoint.published_formats import write_meta
from tests.support.transformers_models import random_model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model in two shards."""
    write_meta(tmp_path, random_model("Llama", num_key_value_heads=4, intermediate_size=256), num_shards=2)
    return tmp_path


def edit_params(folder: Path, **fields: Any) -> None:
    path = folder / "params.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize(
    ("fields", "error", "words"),
    [
        ({"moe": {"num_experts": 8}}, UnsupportedModel, "a mixture of experts"),
        ({"n_heads": 0}, BrokenCheckpoint, "dim and n_heads must be positive"),
    ],
)
def test_parameters_of_another_model_are_refused(
    folder: Path, fields: dict[str, Any], error: type[ValueError], words: str
) -> None:
    edit_params(folder, **fields)
    with pytest.raises(error, match=words):
        open_checkpoint(folder)


def test_shards_with_different_tensors_are_refused(folder: Path) -> None:
    path = folder / "consolidated.01.pth"
    tensors = torch.load(path, weights_only=True)
    norm = tensors.pop("norm.weight")
    torch.save(tensors, path)
    with pytest.raises(BrokenCheckpoint, match=r"shards 0 and 1 differ: 'norm\.weight' is in one only"):
        open_checkpoint(folder)
    torch.save(tensors | {"norm.weight": norm[:-1]}, path)
    with pytest.raises(BrokenCheckpoint, match=r"the parts of 'norm\.weight' in the shards have different shapes"):
        open_checkpoint(folder)


def test_a_folder_without_shards_is_refused(folder: Path) -> None:
    for path in folder.glob("*.pth"):
        path.unlink()
    with pytest.raises((BrokenCheckpoint, UnsupportedModel)):
        open_checkpoint(folder)
