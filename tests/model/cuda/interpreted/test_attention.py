"""The pair of attention kernels against the reference, and against each other to the last bit."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from caravan.model.attention.reference import ReferenceAttention
from caravan.model.cuda.attention import CudaAttention
from caravan.model.cuda.attention_kernels import SPLIT_TOKENS
from caravan.model.forward_batch import ForwardBatch
from caravan.model.kv_quantization import row_bytes
from caravan.scheduler import memory
from tests.support.extent import every

pytestmark = [pytest.mark.proofs, pytest.mark.usefixtures("as_on_a_gpu")]

BLOCK_SIZE = 16
FLOAT32, BFLOAT16, INT8 = torch.float32, torch.bfloat16, torch.int8


class Case:
    """Sequences in scattered blocks of pools whose other slots hold NaN, and queries for the last tokens of each."""

    def __init__(
        self,
        lengths: list[int],
        *,
        heads: tuple[int, int] = (4, 2),
        head_dim: int = 16,
        dtype: torch.dtype = FLOAT32,
        pool: torch.dtype | None = None,
    ) -> None:
        generator = torch.Generator().manual_seed(0)
        num_heads, num_kv_heads = heads
        self.lengths = lengths
        num_blocks = [-(-length // BLOCK_SIZE) for length in lengths]
        blocks = torch.randperm(sum(num_blocks) + 3, generator=generator).int()
        self.tables = torch.zeros(len(lengths), max(num_blocks), dtype=torch.int32)
        slots = []
        for b, count in enumerate(num_blocks):
            self.tables[b, :count], blocks = blocks[:count], blocks[count:]
            positions = torch.arange(lengths[b])
            slots.append(self.tables[b, positions // BLOCK_SIZE].long() * BLOCK_SIZE + positions % BLOCK_SIZE)
        self.slots = torch.cat(slots)
        self.is_int8 = pool == INT8
        row = row_bytes(head_dim) if self.is_int8 else head_dim
        self.shape = (sum(num_blocks) + 3, BLOCK_SIZE, num_kv_heads, row)
        self.dtype = dtype
        self.queries = [2 * torch.randn(n, num_heads, head_dim, generator=generator).to(dtype) for n in lengths]
        keys = [torch.randn(n, num_kv_heads, head_dim, generator=generator).to(dtype) for n in lengths]
        values = [torch.randn(n, num_kv_heads, head_dim, generator=generator).to(dtype) for n in lengths]
        self.keys, self.values = torch.cat(keys), torch.cat(values)

    def pools(self, attention: CudaAttention | ReferenceAttention) -> tuple[Tensor, Tensor]:
        """Return the pools of keys and values, written by the attention."""

        def nothing() -> Tensor:
            if self.is_int8:
                return torch.full((*self.shape[:3], self.shape[3] // 4), torch.nan).view(INT8)
            return torch.full(self.shape, torch.nan, dtype=self.dtype)

        key_cache, value_cache = nothing(), nothing()
        attention.write(self.keys, self.values, key_cache, value_cache, self.slots)
        return key_cache, value_cache

    def run(
        self,
        attention: CudaAttention | ReferenceAttention,
        num_queries: list[int],
        window: int | None = None,
        ends: list[int] | None = None,
    ) -> Tensor:
        """Return the rows of the num_queries tokens before the ends, or the last ones, of each sequence.

        The reference writes the pools; a test compares its bytes with those of the kernel, which takes longer here.
        """
        ends = ends or self.lengths
        pairs = zip(self.queries, num_queries, ends, strict=True)
        queries = torch.cat([queries[end - n : end] for queries, n, end in pairs])
        nothing = torch.empty(0, dtype=torch.int64)
        batch = ForwardBatch(
            token_ids=nothing,
            positions=nothing,
            slot_mapping=nothing,
            query_start_loc=torch.tensor([0, *num_queries]).cumsum(0).int(),
            seq_lens=torch.tensor(ends, dtype=torch.int32),
            block_tables=self.tables,
            wanted_rows=nothing,
        )
        return attention(queries, *self.pools(ReferenceAttention()), batch, window)


def assert_like_the_reference(case: Case, num_queries: list[int], window: int | None = None) -> None:
    found = case.run(CudaAttention(), num_queries, window)
    expected = case.run(ReferenceAttention(), num_queries, window)
    tolerance = 2e-5 if case.dtype == FLOAT32 else 2e-2
    torch.testing.assert_close(found.float(), expected.float(), atol=tolerance, rtol=0)


@pytest.mark.parametrize("heads", [(3, 3), (6, 2), (20, 1)], ids=["MHA", "GQA", "MQA"])
@pytest.mark.parametrize("window", [None, 40])
def test_rows_are_those_of_the_reference(heads: tuple[int, int], window: int | None) -> None:
    assert_like_the_reference(Case([70, 1, 33, 90], heads=heads), [1, 1, 33, 5], window)


@pytest.mark.parametrize("head_dim", [2, 12, 80, 96, 128])
def test_heads_of_any_size_are_padded(head_dim: int) -> None:
    assert_like_the_reference(Case([40, 30], heads=(2, 1), head_dim=head_dim), [1, 7])


@pytest.mark.parametrize(("dtype", "pool"), [(BFLOAT16, None), (FLOAT32, INT8), (BFLOAT16, INT8)], ids=str)
@pytest.mark.parametrize("head_dim", [16, 18])
def test_pools_of_every_type_are_read(dtype: torch.dtype, pool: torch.dtype | None, head_dim: int) -> None:
    case = Case([70, 33], dtype=dtype, pool=pool, head_dim=head_dim)
    assert_like_the_reference(case, [1, 9])
    for ours, theirs in zip(case.pools(CudaAttention()), case.pools(ReferenceAttention()), strict=True):
        assert torch.equal(ours.view(torch.uint8), theirs.view(torch.uint8))


@pytest.mark.parametrize("window", [None, 600, 100])
def test_splits_are_merged_into_the_reference(window: int | None) -> None:
    assert_like_the_reference(Case([1100, 513], heads=(2, 1)), [1, 3], window)


@pytest.mark.parametrize("window", every(2, [None, 20, 600]))
@pytest.mark.parametrize(("dtype", "pool"), [(FLOAT32, None), (BFLOAT16, None), (BFLOAT16, INT8)], ids=str)
def test_a_row_has_the_same_bits_decoded_or_in_a_chunk(
    dtype: torch.dtype, pool: torch.dtype | None, window: int | None
) -> None:
    case = Case([1040], dtype=dtype, pool=pool)
    chunk = case.run(CudaAttention(), [30], window)  # two or more tiles, at the start of the third split
    for end in (1011, 1024, 1025, 1040):
        decoded = case.run(CudaAttention(), [1], window, [end])
        assert torch.equal(decoded[0], chunk[end - 1011])


def test_a_row_has_the_same_bits_alone_and_among_others() -> None:
    case = Case([30, 70, 40, 600])
    together = case.run(CudaAttention(), [1, 11, 40, 1])
    alone = [only(case, b).run(CudaAttention(), [n]) for b, n in enumerate([1, 11, 40, 1])]
    assert torch.equal(together, torch.cat(alone))


def only(case: Case, b: int) -> Any:
    """Return the case with sequence b alone; the pool keeps all of them."""
    alone = Case.__new__(Case)
    alone.__dict__ |= case.__dict__
    alone.lengths, alone.queries, alone.tables = [case.lengths[b]], [case.queries[b]], case.tables[b : b + 1]
    return alone


@pytest.mark.filterwarnings("ignore:All-NaN slice:RuntimeWarning")  # of numpy
@pytest.mark.parametrize("pool", [None, INT8], ids=str)
def test_a_row_of_nan_stays_nan_and_changes_no_other(pool: torch.dtype | None) -> None:
    case = Case([30, 30], pool=pool)
    clean = case.run(CudaAttention(), [1, 1])
    case.keys[12, 0, 3] = torch.nan
    poisoned = case.run(CudaAttention(), [1, 1])
    assert poisoned[0, :2].isnan().all()  # the heads that read this KV head
    assert torch.equal(poisoned[0, 2:], clean[0, 2:])
    assert torch.equal(poisoned[1], clean[1])


def test_sequences_that_pad_a_batch_are_zeros_and_write_nothing() -> None:
    case = Case([30])
    attention = CudaAttention()
    key_cache, value_cache = case.pools(attention)
    nothing = torch.empty(0, dtype=torch.int64)
    real = ForwardBatch(
        nothing,
        nothing,
        nothing,
        torch.tensor([0, 1], dtype=torch.int32),
        torch.tensor([30], dtype=torch.int32),
        case.tables,
        nothing,
    )
    padded = replace(
        real,
        query_start_loc=torch.tensor([0, 1, 2], dtype=torch.int32),
        seq_lens=torch.tensor([30, 0], dtype=torch.int32),
        block_tables=torch.cat((case.tables, torch.zeros_like(case.tables))),
    )
    query = case.queries[0][-1:]
    rows = attention(query.expand(2, -1, -1).contiguous(), key_cache, value_cache, padded)
    assert torch.equal(rows[:1], attention(query, key_cache, value_cache, real))
    assert (rows[1] == 0).all()
    before = key_cache.clone()
    attention.write(case.keys[:1], case.values[:1], key_cache, value_cache, torch.tensor([-1]))
    assert torch.equal(key_cache.nan_to_num(9), before.nan_to_num(9))


def test_another_split_size_gives_other_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case([1040])
    expected = case.run(CudaAttention(), [1])
    monkeypatch.setattr("caravan.model.cuda.attention.SPLIT_TOKENS", 256)
    other = case.run(CudaAttention(), [1])
    assert not torch.equal(other, expected)
    torch.testing.assert_close(other, expected)


def test_memory_is_planned_for_the_splits_of_the_kernels() -> None:
    assert memory.SPLIT_TOKENS == SPLIT_TOKENS
