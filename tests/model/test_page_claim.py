"""Memory that is claimed before it is written."""

import mmap
import sys
from pathlib import Path

import pytest
import torch

from model.page_claim import claim_pages

SIZE = 64 * 2**20


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux")
def test_what_is_claimed_is_in_memory_and_the_rest_is_not() -> None:
    tensor = torch.empty(SIZE, dtype=torch.uint8)
    before = resident_bytes()
    assert claim_pages(tensor, SIZE // 2)
    assert SIZE // 4 < resident_bytes() - before < SIZE * 3 // 4
    assert claim_pages(tensor, 2 * SIZE)  # no more than there is
    assert SIZE * 3 // 4 < resident_bytes() - before < SIZE * 5 // 4


def test_a_claim_changes_no_number() -> None:
    tensor = torch.arange(1_000_000)
    claim_pages(tensor, tensor.nbytes)
    assert torch.equal(tensor, torch.arange(1_000_000))


def test_a_tensor_shorter_than_a_page_is_left_alone() -> None:
    claim_pages(torch.zeros(3), 12)
