"""How much memory is free, also inside a container."""

from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from caravan.model.config import ModelConfig
from caravan.scheduler.memory import free_memory_bytes, give_back_freed_memory, gpu_step_bytes

LLAMA_8B = ModelConfig(
    vocab_size=128_256,
    hidden_size=4096,
    intermediate_size=14_336,
    num_layers=32,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    max_position=131_072,
)


def test_outside_a_container_the_free_memory_of_the_machine_counts(tmp_path: Path) -> None:
    assert free_memory_bytes(tmp_path) == pytest.approx(psutil.virtual_memory().available, rel=0.05)


def test_a_container_has_the_rest_of_its_limit(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("300000000\n")
    (tmp_path / "memory.current").write_text("100000000\n")
    (tmp_path / "memory.stat").write_text("anon 5\ninactive_file 30000000\n")
    assert free_memory_bytes(tmp_path) == 230_000_000  # what the page cache holds can be given back


def test_mapped_weights_are_not_free_although_the_kernel_could_reclaim_them(tmp_path: Path) -> None:
    before = free_memory_bytes(tmp_path)
    assert free_memory_bytes(tmp_path, mapped_bytes=before // 2) == pytest.approx(before / 2, rel=0.05)
    assert free_memory_bytes(tmp_path, mapped_bytes=2 * before) == 0
    (tmp_path / "memory.max").write_text("300000000\n")
    (tmp_path / "memory.current").write_text("100000000\n")
    (tmp_path / "memory.stat").write_text("anon 5\ninactive_file 30000000\n")
    assert free_memory_bytes(tmp_path, mapped_bytes=20_000_000) == 210_000_000
    # Pages that are active, or were read by another container, are not among the reclaimable ones.
    assert free_memory_bytes(tmp_path, mapped_bytes=90_000_000) == 200_000_000


def test_in_a_container_without_a_limit_the_free_memory_of_the_machine_counts(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("max\n")
    assert free_memory_bytes(tmp_path) == pytest.approx(psutil.virtual_memory().available, rel=0.05)


def test_freed_memory_is_returned_to_the_system() -> None:
    blocks = [bytearray(60_000) for _ in range(2000)]
    last = bytearray(60_000)  # after them, so that the C library keeps the memory before it
    del blocks
    before = psutil.Process().memory_info().rss
    give_back_freed_memory()
    assert psutil.Process().memory_info().rss < before - 80_000_000
    assert len(last) == 60_000


def test_a_step_of_a_model_of_8b_parameters_needs_a_few_gigabytes_of_a_gpu() -> None:
    assert 3e9 < gpu_step_bytes(LLAMA_8B, None, 8192, 256, 8192) < 5e9
    token_bytes = gpu_step_bytes(LLAMA_8B, None, 513, 64, 8192) - gpu_step_bytes(LLAMA_8B, None, 512, 64, 8192)
    assert token_bytes > 4 * (4096 + 3 * 14_336)  # at least a residual stream, and gate, up and their product
    row_bytes = gpu_step_bytes(LLAMA_8B, None, 512, 65, 8192) - gpu_step_bytes(LLAMA_8B, None, 512, 64, 8192)
    assert row_bytes > 2 * 4 * 128_256


def test_the_sums_of_long_contexts_and_a_draft_model_are_counted_among_the_memory_of_a_step() -> None:
    short, long = (gpu_step_bytes(LLAMA_8B, None, 512, 256, length) for length in (8192, 131_072))
    num_splits = (131_072 - 8192) // 512
    assert long - short == 2 * 4 * 256 * 32 * num_splits * (128 + 2)  # 2 GB; a graph has its own
    larger = replace(LLAMA_8B, num_heads=64, intermediate_size=2 * 14_336)
    with_draft, alone = (gpu_step_bytes(LLAMA_8B, draft, 8192, 256, 8192) for draft in (larger, None))
    assert with_draft - alone > 8192 * 4 * 4 * 14_336
    logits_bytes = 4 * 32 * 128_256
    assert gpu_step_bytes(LLAMA_8B, LLAMA_8B, 8192, 256, 8192) - alone == logits_bytes  # they take turns
