"""Memory is allocated before it is written."""

import mmap
import re
import sys
from pathlib import Path

import pytest
import torch

from caravan.model.prefault import prefault_pages

SIZE = 64 * 2**20


def resident_bytes(tensor: torch.Tensor) -> int:
    """Return how much of the mapping that holds the tensor is in memory."""
    address, is_there = tensor.data_ptr(), False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            start, _, end = line.split()[0].partition("-")
            is_there = int(start, 16) <= address < int(end, 16)
        elif is_there and line.startswith("Rss:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("the tensor is in no mapping")


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux")
def test_only_the_prefaulted_pages_are_in_memory() -> None:
    fresh = mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # an allocator may have it in memory
    tensor = torch.frombuffer(fresh, dtype=torch.uint8)
    before = resident_bytes(tensor)
    assert prefault_pages(tensor, SIZE // 2)
    assert SIZE // 4 < resident_bytes(tensor) - before < SIZE * 3 // 4
    assert prefault_pages(tensor, 2 * SIZE)  # no more than there is
    assert SIZE * 3 // 4 < resident_bytes(tensor) - before < SIZE * 5 // 4


def test_prefaulting_changes_no_number() -> None:
    tensor = torch.arange(1_000_000)
    prefault_pages(tensor, tensor.nbytes)
    assert torch.equal(tensor, torch.arange(1_000_000))


def test_a_tensor_shorter_than_a_page_is_left_alone() -> None:
    prefault_pages(torch.zeros(3), 12)
