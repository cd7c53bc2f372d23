"""Experts in the file of packed weights: those that no token was routed to are not in memory."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from caravan.model.backend import choose_backend
from caravan.model.cpu.llama import CpuLlama
from caravan.model.cpu.weights_cache import WeightsCache
from caravan.model.llama import Llama
from caravan.model.loader import load_model, open_checkpoint
from tests.model.oracle import logits_of_every_position
from tests.support.gguf_files import write_tiny_llama
from tests.support.tiny_llama import tiny_llama

SIZES: dict[str, Any] = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64, "vocab_size": 278}
EXPERTS: dict[str, Any] = {"num_layers": 1, "num_experts": 16, "num_chosen_experts": 1}
EXPERT_BYTES = 3 * 256 * 512 * 2
PROMPT = torch.randint(0, 270, (120,), generator=torch.Generator().manual_seed(1)).tolist()


def load(path: Path, cache: WeightsCache | None) -> Llama:
    checkpoint = open_checkpoint(path)
    backend = choose_backend(checkpoint, dtype="auto", quantization="auto", block_size=16)
    return load_model(checkpoint, backend.dtype, torch.device("cpu"), 128, backend.make_model, cache)


def resident_bytes() -> int:
    """Return the bytes of mapped weights that are in this process's memory."""
    total, is_ours = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            is_ours = line.endswith(".weights")
        elif is_ours and line.startswith("Rss:"):
            total += int(line.split()[1]) * 1024
    return total


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="of Linux")
def test_an_expert_is_read_from_the_file_when_a_token_is_routed_to_it(tmp_path: Path) -> None:
    path, environ = tmp_path / "m.gguf", {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    write_tiny_llama(path, model=tiny_llama(**SIZES, **EXPERTS))
    cache = WeightsCache(2**30, environ, min_bytes=1)
    cache.opened_ns += 2**40  # the model is as old as that
    packed = load(path, cache)
    cache.write()
    expected = logits_of_every_position(packed, PROMPT)
    del packed
    cache = WeightsCache(2**30, environ, min_bytes=1)
    model = load(path, cache)
    assert isinstance(model, CpuLlama)
    assert cache.mapped_bytes > 16 * EXPERT_BYTES
    at_first = resident_bytes()
    assert at_first < 4 * EXPERT_BYTES
    logits_of_every_position(model, PROMPT[:1])
    with_one = resident_bytes()
    assert at_first + EXPERT_BYTES // 2 < with_one < at_first + 5 * EXPERT_BYTES
    assert torch.equal(logits_of_every_position(model, PROMPT), expected)
    assert resident_bytes() > 12 * EXPERT_BYTES
