"""Loading: what it takes of memory, and how a model's own defaults are read."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from caravan.model.checkpoint import BrokenCheckpoint
from caravan.model.config import UnsupportedModel
from caravan.model.loader import open_checkpoint
from caravan.model.sampling.generation_defaults import GenerationDefaults, load_generation_defaults
from tests.model.oracle import load_checkpoint
from tests.support.transformers_models import random_model

# Run by itself, so that nothing else is in memory. RssAnon: mapped files are the kernel's to take back.
MEASURE = """
import sys, threading, time
from pathlib import Path
import torch
from caravan.model.loader import load_model, open_checkpoint

def anonymous_bytes():
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("RssAnon:")[1].split()[0])

before, most, is_done = anonymous_bytes(), 0, False
def watch():
    global most
    while not is_done:
        most = max(most, anonymous_bytes())
        time.sleep(0.001)
thread = threading.Thread(target=watch)
thread.start()
model = load_model(open_checkpoint(Path(sys.argv[1])), getattr(torch, sys.argv[2]), torch.device("cpu"), 64)
is_done = True
thread.join()
sizes = [weight.nbytes for weight in model.parameters()]
print("PEAK", most - before, sum(sizes), max(sizes), "torch._dynamo" in sys.modules)
"""


def check_memory_of_loading(path: Path, dtype: str) -> None:
    done = subprocess.run([sys.executable, "-c", MEASURE, str(path), dtype], capture_output=True, text=True, check=True)
    found = re.search(r"PEAK (\d+) (\d+) (\d+) False", done.stdout)  # torch's compiler would take a second to import
    assert found, done.stdout
    peak, final, largest = map(int, found.groups())
    assert final > 2e8
    assert peak <= 1.1 * (final + largest)


@pytest.mark.slow
def test_loading_takes_the_final_weights_and_one_tensor(tmp_path: Path) -> None:
    oracle = random_model("Llama", hidden_size=1024, intermediate_size=2816, num_hidden_layers=4, vocab_size=16_000)
    oracle.to(torch.bfloat16).save_pretrained(tmp_path)
    check_memory_of_loading(tmp_path, "float32")


@pytest.mark.real_model
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_loading_the_default_model_takes_the_final_weights_and_one_tensor(real_model_path: Path, dtype: str) -> None:
    check_memory_of_loading(real_model_path, dtype)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match="holds no model"):
        open_checkpoint(tmp_path)


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    random_model("Llama").save_pretrained(folder)
    (folder / "model.safetensors").rename(tmp_path / "elsewhere.safetensors")
    (folder / "model.safetensors").symlink_to(tmp_path / "elsewhere.safetensors")
    with pytest.raises(BrokenCheckpoint, match=r"model\.safetensors is a link out of its folder"):
        open_checkpoint(folder)


def test_the_links_of_the_hugging_face_cache_are_followed(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--org--name" / "snapshots" / "c0ffee"
    random_model("Llama").save_pretrained(snapshot)
    blobs = tmp_path / "models--org--name" / "blobs"
    blobs.mkdir()
    for path in list(snapshot.iterdir()):
        path.rename(blobs / path.name)
        path.symlink_to(Path("../../blobs") / path.name)
    assert open_checkpoint(snapshot).config.num_layers == 3


def test_weights_are_in_the_type_asked_for(tmp_path: Path) -> None:
    random_model("Llama").save_pretrained(tmp_path)
    assert {weight.dtype for weight in load_checkpoint(tmp_path, torch.bfloat16).parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, GenerationDefaults()),
        ({"temperature": 0.6, "top_p": 0.9, "do_sample": True}, GenerationDefaults(temperature=0.6, top_p=0.9)),
        ({"top_k": 20, "repetition_penalty": 1.05}, GenerationDefaults(top_k=20, repetition_penalty=1.05)),
        ({"temperature": None, "min_p": 0.1}, GenerationDefaults(min_p=0.1)),
        ({"top_k": -1, "top_p": None, "repetition_penalty": None}, GenerationDefaults()),
        ({"top_k": None, "temperature": 1}, GenerationDefaults()),
        ({"top_k": 50.0, "temperature": 0}, GenerationDefaults(top_k=50, temperature=0)),
    ],
)
def test_a_models_defaults_are_read(tmp_path: Path, given: dict[str, Any], expected: GenerationDefaults) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps(given))
    assert load_generation_defaults(tmp_path) == expected


def test_without_the_file_the_defaults_are_openais(tmp_path: Path) -> None:
    assert load_generation_defaults(tmp_path) == GenerationDefaults()
    assert load_generation_defaults(tmp_path / "m.gguf") == GenerationDefaults()


@pytest.mark.parametrize(
    "given",
    [{"temperature": -1}, {"top_p": 2}, {"top_k": "many"}, {"top_k": -2}, {"top_k": 1.5}, {"repetition_penalty": 0}],
)
def test_defaults_out_of_range_are_refused(tmp_path: Path, given: dict[str, Any]) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps(given))
    with pytest.raises(BrokenCheckpoint, match=rf"generation_config\.json: {next(iter(given))}"):
        load_generation_defaults(tmp_path)
