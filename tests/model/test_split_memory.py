"""What loading a rank's share takes of memory."""

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from tests.support.extent import only_in_full
from tests.support.large_folders import write_large_folder
from tests.support.transformers_models import random_model

# Run by itself, so that nothing else is in memory. RssAnon: mapped files are the kernel's to take back.
MEASURE = """
import sys, threading, time
from pathlib import Path
import torch
from caravan.model.backend import choose_backend
from caravan.model.exchange import SharedMemoryExchange, new_memory
from caravan.model.loader import load_model, open_checkpoint
from caravan.model.share import Share

def anonymous_bytes():
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("RssAnon:")[1].split()[0])

def measure(path, dtype, quantization):
    checkpoint, share = open_checkpoint(Path(path)), Share(1, 4)
    backend = choose_backend(checkpoint, dtype=dtype, quantization=quantization, block_size=16, share=share)
    exchange = SharedMemoryExchange(1, 4, new_memory(), 1)
    before, most, is_done = anonymous_bytes(), 0, False
    def watch():
        nonlocal most
        while not is_done:
            most = max(most, anonymous_bytes())
            time.sleep(0.001)
    thread = threading.Thread(target=watch)
    thread.start()
    model = load_model(
        checkpoint, backend.dtype, torch.device("cpu"), 64, backend.make_model, share=share, exchange=exchange
    )
    is_done = True
    thread.join()
    sizes = [weight.nbytes for weight in model.parameters()]
    print("PEAK", most - before, sum(sizes), max(sizes))

for path, dtype, quantization in zip(*[iter(sys.argv[1:])] * 3):
    measure(path, dtype, quantization)
"""
KEEP_NOTHING = {"MALLOC_MMAP_THRESHOLD_": str(2**20)}  # else glibc keeps freed memory of up to 32 MB for a thread


def measured(path: Path, dtype: str, quantization: str) -> tuple[int, int, int]:
    """Return the bytes at the peak, of the share, and of its largest tensor."""
    (peak,) = measured_each([str(path), dtype, quantization])
    return peak


def measured_each(arguments: Sequence[str]) -> list[tuple[int, int, int]]:
    """Return the same for several models, loaded one after the other in one process."""
    command = [sys.executable, "-c", MEASURE, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, **KEEP_NOTHING})
    found = re.findall(r"PEAK (\d+) (\d+) (\d+)", done.stdout)
    assert len(found) == len(arguments) // 3, done.stdout
    return [(int(peak), int(share), int(largest)) for peak, share, largest in found]


@pytest.mark.slow
def test_loading_a_rank_takes_its_share_and_a_tenth(tmp_path: Path) -> None:
    """In float32; the kernels pack one tensor beside it, of which a model of few layers has no tenth."""
    oracle = random_model("Llama", hidden_size=1024, intermediate_size=2816, num_hidden_layers=4, vocab_size=8_000)
    oracle.to(torch.bfloat16).save_pretrained(tmp_path)
    peak, share, _ = measured(tmp_path, "float32", "none")
    assert share > 8e7
    assert peak <= 1.1 * share
    peak, share, largest = measured(tmp_path, "bfloat16", "none")
    assert share > 4e7
    assert peak <= 1.1 * (share + largest)


@pytest.mark.slow
@pytest.mark.parametrize("quantization", ["int8", pytest.param("int4", marks=only_in_full())])
def test_a_tied_embedding_is_never_in_memory_in_float32(tmp_path: Path, quantization: str) -> None:
    """Its table of 102 MB in bfloat16 is whole in each rank; in float32 it has twice that."""
    oracle = random_model("Llama", tie_word_embeddings=True, hidden_size=512, vocab_size=100_000)
    oracle.to(torch.bfloat16).save_pretrained(tmp_path)
    peak, share, table = measured(tmp_path, "bfloat16", quantization)
    assert table == 2 * 512 * 100_000
    assert peak <= 1.1 * share + 3e7  # and the pieces that threads read ahead


@pytest.mark.slow
def test_loading_a_rank_of_a_quantized_folder_takes_its_share_and_a_tenth(tmp_path: Path) -> None:
    """No matrix is whole in memory; the largest have 17 million numbers, which are 67 MB in float32."""
    forms = {"gptq": "native", "awq": "int4", "float8": "int4", "nf4": "int8"}
    arguments: list[str] = []
    for form, quantization in forms.items():
        arguments += [str(write_large_folder(tmp_path / form, form)), "bfloat16", quantization]
    for form, (peak, share, _) in zip(forms, measured_each(arguments), strict=True):
        assert share > 1e7, form
        assert peak <= 1.1 * share + 2.5e7, form  # and the pieces that threads read ahead


@pytest.mark.real_model
@pytest.mark.parametrize(
    "quantization", ["native", *(pytest.param(name, marks=only_in_full()) for name in ("none", "int8"))]
)
def test_loading_a_rank_of_the_default_model_takes_its_share_and_one_tensor(
    real_model_path: Path, quantization: str
) -> None:
    peak, share, largest = measured(real_model_path, "bfloat16", quantization)
    assert peak <= 1.1 * (share + largest)
