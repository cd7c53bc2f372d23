"""What ranks on two hosts must agree on."""

from pathlib import Path

import pytest
import torch

from caravan.model.cpu.build import KernelsUnavailable
from caravan.model.loader import open_checkpoint
from caravan.scheduler import rank_facts as module
from caravan.scheduler.rank_facts import difference, rank_facts
from tests.support.gguf_files import write_tiny_llama
from tests.support.tiny_llama import tiny_llama
from tests.support.transformers_models import random_model


def test_a_copy_of_a_model_has_the_same_facts_and_another_model_has_not(tmp_path: Path) -> None:
    for name, seed in (("one", 1), ("copy", 1), ("other", 2)):
        write_tiny_llama(tmp_path / f"{name}.gguf", model=tiny_llama(seed=seed, vocab_size=278))
    one, copy, other = (rank_facts(open_checkpoint(tmp_path / f"{name}.gguf")) for name in ("one", "copy", "other"))
    assert difference(one, copy) == ""
    assert {name for name in one if one[name] != other[name]} == {"weights"}
    assert difference(one, other).startswith("The rank differs from the engine in `weights`: ")


def test_other_files_of_a_folder_do_not_count(tmp_path: Path) -> None:
    random_model("Llama").save_pretrained(tmp_path)
    before = rank_facts(open_checkpoint(tmp_path))
    (tmp_path / "README.md").write_text("read me")
    assert rank_facts(open_checkpoint(tmp_path)) == before


def test_what_differs_is_named_with_short_values() -> None:
    assert difference({"torch": "2.13.0"}, {"torch": "2.12.0"}) == (
        "The rank differs from the engine in `torch`: 2.12.0 instead of 2.13.0. Bits depend on it: use the same "
        "version, model and kind of processor on all hosts."
    )
    assert "`processor`. Bits" in difference({"processor": "x" * 100}, {"processor": "y"})
    assert "`new`: \\x1b instead of unknown" in difference({}, {"new": "\x1b"})


def test_a_host_without_kernels_is_another_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tiny_llama(path := tmp_path / "one.gguf")
    with_kernels = rank_facts(open_checkpoint(path))

    def unavailable() -> None:
        raise KernelsUnavailable("There is no compiler.")

    monkeypatch.setattr(module, "load_kernels", unavailable)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    without = rank_facts(open_checkpoint(path))
    assert {name for name in without if without[name] != with_kernels[name]} == {"kernels", "GPU"}
