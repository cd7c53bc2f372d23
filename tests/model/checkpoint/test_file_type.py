"""The type of a model's weights in one word, as Ollama writes it."""

from pathlib import Path

import gguf
import pytest
import torch

from caravan.model.checkpoint.file_type import main_type
from caravan.model.loader import open_checkpoint
from tests.model.checkpoint.published_formats import write_llama2c, write_meta
from tests.support.gguf_files import write_tiny_llama
from tests.support.transformers_models import random_model

Q = gguf.GGMLQuantizationType
META = {"intermediate_size": 128, "rms_norm_eps": 1e-5}  # what Meta's rule makes of 48 dimensions


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (15, "Q4_K_M"),
        (7, "Q8_0"),
        (32, "BF16"),
        (0, "F32"),
        (None, "Q8_0"),
        (1024, "Q8_0"),  # llama.cpp has guessed
        (999, "Q8_0"),
        ("Q4_K_M", "Q8_0"),
    ],
)
def test_a_gguf_file_has_the_type_that_it_says_or_that_of_most_weights(
    tmp_path: Path, number: object, expected: str
) -> None:
    write_tiny_llama(tmp_path / "m.gguf", quantize=Q.Q8_0, metadata={"general.file_type": number})
    assert open_checkpoint(tmp_path / "m.gguf").file_type == expected


@pytest.mark.parametrize(
    ("dtype", "expected"), [(torch.bfloat16, "BF16"), (torch.float16, "F16"), (torch.float32, "F32")]
)
def test_a_folder_has_the_type_of_its_tensors(tmp_path: Path, dtype: torch.dtype, expected: str) -> None:
    oracle = random_model("Llama", **META).to(dtype)
    oracle.save_pretrained(tmp_path / "hf")
    write_meta(tmp_path / "meta", oracle)
    for name in ("hf", "meta"):
        assert open_checkpoint(tmp_path / name).file_type == expected


def test_llama2c_has_two_types(tmp_path: Path) -> None:
    for version, expected in ((1, "F32"), (2, "Q8_0")):
        write_llama2c(tmp_path / "m.bin", random_model("Llama", **META), version=version)
        assert open_checkpoint(tmp_path / "m.bin").file_type == expected


def test_most_numbers_decide() -> None:
    shapes = {"a": (4, 4), "b": (2, 4), "c": (1, 9)}
    assert main_type(shapes, {"a": "F16", "b": "F32", "c": "F32"}) == "F32"
    assert main_type(shapes, {"a": "Q4_K", "b": "F32"}) == "Q4_K"
    assert main_type({}, {}) == ""
