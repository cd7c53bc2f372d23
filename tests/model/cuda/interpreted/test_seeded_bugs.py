"""Bugs that are made on purpose in the kernels: each must be noticed by what the other tests compare.

Those of attention and of packed weights are here. A spilled kernel and a missing alignment are in
compiled/test_variants.py, a host read in traced/test_steps.py.
"""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.gpu_inputs import block_linear
from caravan.model.attention.reference import ReferenceAttention
from caravan.model.cuda import attention, attention_kernels, packed_kernels, packed_linear
from caravan.model.cuda.attention import CudaAttention
from caravan.model.cuda.attention_kernels import attend_chunk
from caravan.model.cuda.linear import product
from caravan.model.forward_batch import ForwardBatch

pytestmark = [pytest.mark.proofs, pytest.mark.usefixtures("as_on_a_gpu")]

BLOCK_SIZE, LENGTH, WINDOW = 16, 1030, 600


@pytest.fixture
def changed_kernels(tmp_path: Path) -> Callable[[ModuleType, str, str], ModuleType]:
    """Return a function that returns a module of kernels with a changed line, which must be there once."""

    def changed(kernels: ModuleType, line: str, other: str) -> ModuleType:
        assert kernels.__file__ is not None
        source = Path(kernels.__file__).read_text("utf-8")
        assert source.count(line) == 1
        path = tmp_path / "changed_kernels.py"
        path.write_text(source.replace(line, other), "utf-8")
        spec = importlib.util.spec_from_file_location("changed_kernels", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return changed


class Sequence:
    """A sequence whose keys and values are in the pool, and queries for its last tokens."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        num_blocks = -(-LENGTH // BLOCK_SIZE)
        self.tables = torch.arange(num_blocks, dtype=torch.int32).flip(0).unsqueeze(0)
        self.queries = 2 * torch.randn(LENGTH, 2, 16, generator=generator)
        keys, values = (torch.randn(LENGTH, 1, 16, generator=generator) for _ in "kv")
        self.keys, self.values = (torch.full((num_blocks, BLOCK_SIZE, 1, 16), torch.nan) for _ in "kv")
        positions = torch.arange(LENGTH)
        slots = self.tables[0, positions // BLOCK_SIZE].long() * BLOCK_SIZE + positions % BLOCK_SIZE
        ReferenceAttention().write(keys, values, self.keys, self.values, slots)

    def rows(self, kernels: CudaAttention | ReferenceAttention, num_queries: int) -> Tensor:
        """Return the attention of the last num_queries tokens, one or several: decoded, or a chunk."""
        nothing = torch.empty(0, dtype=torch.int64)
        batch = ForwardBatch(
            token_ids=nothing,
            positions=nothing,
            slot_mapping=nothing,
            query_start_loc=torch.tensor([0, num_queries], dtype=torch.int32),
            seq_lens=torch.tensor([LENGTH], dtype=torch.int32),
            block_tables=self.tables,
            wanted_rows=nothing,
        )
        return kernels(self.queries[-num_queries:], self.keys, self.values, batch, WINDOW)

    def is_like_the_reference(self, num_queries: int) -> bool:
        found, expected = (self.rows(kernels, num_queries) for kernels in (CudaAttention(), ReferenceAttention()))
        return torch.allclose(found, expected, atol=2e-5, rtol=0)

    def has_the_same_bits_decoded_and_in_a_chunk(self) -> bool:
        return torch.equal(self.rows(CudaAttention(), 1)[0], self.rows(CudaAttention(), 3)[-1])


def test_without_a_bug_nothing_is_noticed() -> None:
    sequence = Sequence()
    assert sequence.is_like_the_reference(1)
    assert sequence.is_like_the_reference(3)
    assert sequence.has_the_same_bits_decoded_and_in_a_chunk()


@pytest.mark.parametrize(
    ("line", "other"),
    [
        ("(distance >= 0) &", "(distance >= -1) &"),  # a query sees the token after it
        ("(distance < window) &", "(distance <= window) &"),  # one position more than the window
        ("(at >= first) & (at < end)", "(at >= first) & (at < end - 1)"),  # not the last position
    ],
)
def test_a_wrong_mask_is_noticed(
    line: str,
    other: str,
    changed_kernels: Callable[[ModuleType, str, str], ModuleType],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = changed_kernels(attention_kernels, line, other)
    for name in ("attend_chunk", "decode_splits"):
        monkeypatch.setattr(attention, name, getattr(module, name))
    sequence = Sequence()
    assert not (sequence.is_like_the_reference(1) and sequence.is_like_the_reference(3))


class OtherSplits:
    """A kernel whose launches get another split size."""

    def __init__(self, kernel: Any, split_tokens: int) -> None:
        self._kernel = kernel
        self._split_tokens = split_tokens

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return lambda *arguments, **options: self._kernel[grid](*arguments, **options | {"SPLIT": self._split_tokens})


@pytest.mark.parametrize("split_tokens", [256, 1024])
def test_another_split_size_in_chunks_is_noticed(split_tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "attend_chunk", OtherSplits(attend_chunk, split_tokens))
    sequence = Sequence()
    assert sequence.is_like_the_reference(3)  # only the bits differ
    assert not sequence.has_the_same_bits_decoded_and_in_a_chunk()


def test_another_split_size_in_decoding_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("decode_splits", "merge_splits"):
        monkeypatch.setattr(attention, name, OtherSplits(getattr(attention, name), 1024))
    sequence = Sequence()
    assert sequence.is_like_the_reference(1)
    assert not sequence.has_the_same_bits_decoded_and_in_a_chunk()


PACKED_BUGS = [
    ("Q4_K", "high = half_float(pair >> 16)", "high = half_float(pair)"),  # the first of a pair for the second
    ("Q4_K", "whole_numbers(scale_words, 16,", "whole_numbers(scale_words, 0,"),  # scales as offsets
    ("Q6_K", "-SCALE_ZERO / _UNIT", "SCALE_ZERO / _UNIT"),
    ("Q6_K", "weight_pairs(words, 8, BITS, scale", "weight_pairs(words, 0, BITS, scale"),  # numbers of other inputs
]


def is_like_the_blocks(kind: str) -> bool:
    """Return whether a product with random blocks of a kind is that with their weights, to the last bit."""
    linear, weight = block_linear(kind, 8, 256, "cpu")
    x = torch.randn(3, 256, generator=torch.Generator().manual_seed(0)).bfloat16()
    return torch.equal(linear(x), product(x, weight.bfloat16()))


@pytest.mark.parametrize(("kind", "line", "other"), PACKED_BUGS)
def test_a_wrong_number_or_scale_of_a_packed_weight_is_noticed(
    kind: str,
    line: str,
    other: str,
    changed_kernels: Callable[[ModuleType, str, str], ModuleType],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert is_like_the_blocks(kind)
    monkeypatch.setattr(packed_linear, "multiply_packed", changed_kernels(packed_kernels, line, other).multiply_packed)
    assert not is_like_the_blocks(kind)
