"""The kernel of paged attention against the reference."""

from typing import Any

import pytest
import torch
from torch import Tensor

from caravan.model.attention.cpu import CpuAttention
from caravan.model.attention.reference import ReferenceAttention
from caravan.model.forward_batch import ForwardBatch
from caravan.model.kv_quantization import dequantize_heads, quantize_heads, row_bytes

TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 1.5e-2}
POOLS = [(torch.float32, None), (torch.bfloat16, None), (torch.float32, torch.int8), (torch.bfloat16, torch.int8)]


def tolerance(dtype: torch.dtype, pool: torch.dtype | None) -> float:
    """Return how far kernel and reference may be apart; both see the same pool, the kernel rounds to 15 bits."""
    return max(TOLERANCE[dtype], 1.5e-3 if pool == torch.int8 else 0)


class Case:
    """A pool filled through the contract's own `write`, and a batch of chunks over it."""

    def __init__(
        self,
        dtype: torch.dtype,
        *,
        lengths: list[int],
        num_queries: list[int],
        heads: tuple[int, int] = (9, 3),
        head_dim: int = 64,
        block_size: int = 16,
        fill: float = 0.0,
        pool: torch.dtype | None = None,
    ) -> None:
        generator = torch.Generator().manual_seed(0)
        num_heads, num_kv_heads = heads
        num_blocks = [-(-length // block_size) for length in lengths]
        blocks = torch.randperm(sum(num_blocks) + 3, generator=generator).int()
        tables = torch.zeros(len(lengths), max(num_blocks), dtype=torch.int32)
        for b, count in enumerate(num_blocks):
            tables[b, :count], blocks = blocks[:count], blocks[count:]
        self.pool = pool or dtype
        row = row_bytes(head_dim) if self.pool == torch.int8 else head_dim
        self.shape = (sum(num_blocks) + 3, block_size, num_kv_heads, row)
        self.fill = fill
        self.queries = torch.randn(sum(num_queries), num_heads, head_dim, generator=generator).to(dtype) * 2
        self.keys = [torch.randn(n, num_kv_heads, head_dim, generator=generator).to(dtype) for n in lengths]
        self.values = [torch.randn(n, num_kv_heads, head_dim, generator=generator).to(dtype) for n in lengths]
        nothing = torch.empty(0, dtype=torch.int64)
        self.batch = ForwardBatch(
            token_ids=nothing,
            positions=nothing,
            slot_mapping=nothing,
            query_start_loc=torch.tensor([0, *num_queries]).cumsum(0).int(),
            seq_lens=torch.tensor(lengths, dtype=torch.int32),
            block_tables=tables,
            wanted_rows=nothing,
        )

    def run(self, attention: Any, window: int | None = None, soft_cap: float | None = None) -> Tensor:
        pools = [torch.full(self.shape, self.fill, dtype=self.pool) for _ in range(2)]
        block_size = self.shape[1]
        for table, keys, values in zip(self.batch.block_tables, self.keys, self.values, strict=True):
            positions = torch.arange(len(keys))
            slots = table[positions // block_size].long() * block_size + positions % block_size
            attention.write(keys, values, *pools, slots)
        return attention(self.queries, *pools, self.batch, window, soft_cap)


@pytest.mark.parametrize(("dtype", "pool"), POOLS)
@pytest.mark.parametrize("window", [None, 7, 300])
@pytest.mark.parametrize(
    "case",
    [
        {"lengths": [1, 16, 17, 255, 256, 257, 700], "num_queries": [1] * 7},
        {"lengths": [40, 300, 33], "num_queries": [40, 70, 1]},
        {"lengths": [300], "num_queries": [300], "heads": (3, 1)},
        {"lengths": [130, 1], "num_queries": [2, 1], "block_size": 32},
    ],
    ids=["decode", "mixed", "prefill", "blocks of 32"],
)
def test_the_kernel_agrees_with_the_reference(
    kernels: Any, case: dict[str, Any], window: int | None, dtype: torch.dtype, pool: torch.dtype | None
) -> None:
    ours = Case(dtype, pool=pool, **case).run(CpuAttention(kernels), window)
    expected = Case(dtype, pool=pool, **case).run(ReferenceAttention(), window)
    assert ours.dtype == dtype
    limit = tolerance(dtype, pool)
    torch.testing.assert_close(ours, expected, atol=limit, rtol=limit)


@pytest.mark.parametrize(("dtype", "pool"), POOLS)
@pytest.mark.parametrize("num_queries", [1, 40])
def test_scores_are_capped(kernels: Any, num_queries: int, dtype: torch.dtype, pool: torch.dtype | None) -> None:
    def run(attention: Any, soft_cap: float | None = None) -> Tensor:
        case = Case(dtype, lengths=[300, 50], num_queries=[num_queries] * 2, pool=pool)
        return case.run(attention, 77, soft_cap)

    ours, expected = run(CpuAttention(kernels), 1.5), run(ReferenceAttention(), 1.5)
    limit = tolerance(dtype, pool)
    torch.testing.assert_close(ours, expected, atol=limit, rtol=limit)
    assert (ours - run(CpuAttention(kernels))).abs().max() > 10 * limit


@pytest.mark.parametrize(("dtype", "pool"), POOLS)
def test_a_split_outside_the_window_adds_nothing_whatever_memory_held(
    kernels: Any, dtype: torch.dtype, pool: torch.dtype | None
) -> None:
    case = Case(dtype, lengths=[700], num_queries=[1], heads=(3, 1), pool=pool)  # few units: one for each split
    expected = case.run(ReferenceAttention(), 7)
    for size in (48, 144, 160, 432) * 8:  # what is freed here is what the kernel may be given
        torch.full((size,), torch.nan)
    ours = case.run(CpuAttention(kernels), 7)
    torch.testing.assert_close(ours, expected, atol=tolerance(dtype, pool), rtol=tolerance(dtype, pool))


@pytest.mark.parametrize(("dtype", "pool"), POOLS)
@pytest.mark.parametrize("heads", [(4, 4), (8, 2), (6, 1), (16, 2)], ids=str)
@pytest.mark.parametrize("head_dim", [2, 12, 16, 80, 128])
def test_every_grouping_of_heads_and_head_size_works(
    kernels: Any, heads: tuple[int, int], head_dim: int, dtype: torch.dtype, pool: torch.dtype | None
) -> None:
    case = Case(dtype, lengths=[50, 20, 270], num_queries=[1, 20, 5], heads=heads, head_dim=head_dim, pool=pool)
    expected = case.run(ReferenceAttention())
    limit = tolerance(dtype, pool)
    torch.testing.assert_close(case.run(CpuAttention(kernels)), expected, atol=limit, rtol=limit)


@pytest.mark.parametrize(("dtype", "pool"), POOLS)
def test_a_row_has_the_same_bits_decoded_alone_or_inside_a_prefill(
    kernels: Any, dtype: torch.dtype, pool: torch.dtype | None
) -> None:
    whole = Case(dtype, lengths=[600, 90], num_queries=[600, 90], pool=pool)
    together = whole.run(CpuAttention(kernels))
    for position in (0, 1, 15, 16, 254, 255, 256, 300, 511, 512, 599):
        alone = Case(dtype, lengths=[600], num_queries=[1], pool=pool)
        alone.keys, alone.values = [whole.keys[0][: position + 1]], [whole.values[0][: position + 1]]
        alone.batch.seq_lens[0] = position + 1
        alone.queries = whole.queries[position : position + 1]
        assert torch.equal(alone.run(CpuAttention(kernels))[0], together[position]), position


@pytest.mark.parametrize("pool", [torch.bfloat16, torch.int8])
@pytest.mark.parametrize("num_threads", [1, 2, 5])
def test_the_number_of_threads_changes_no_bit(kernels: Any, num_threads: int, pool: torch.dtype) -> None:
    case = Case(torch.bfloat16, lengths=[700, 40, 1], num_queries=[1, 40, 1], pool=pool)
    expected = case.run(CpuAttention(kernels))
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        assert torch.equal(case.run(CpuAttention(kernels)), expected)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(("dtype", "pool"), POOLS)
def test_memory_after_the_last_token_is_never_read(kernels: Any, dtype: torch.dtype, pool: torch.dtype | None) -> None:
    shape: dict[str, Any] = {"lengths": [1, 2, 17, 31, 250], "num_queries": [1, 2, 1, 3, 1], "pool": pool}
    expected = Case(dtype, **shape).run(CpuAttention(kernels))
    nothing = -1 if pool == torch.int8 else torch.nan  # the bytes of a scale that is not a number
    assert torch.equal(Case(dtype, **shape, fill=nothing).run(CpuAttention(kernels)), expected)


@pytest.mark.parametrize("pool", [torch.bfloat16, torch.int8])
@pytest.mark.parametrize("what", ["keys", "values"])
def test_a_row_of_nan_stays_nan_and_changes_no_other(kernels: Any, what: str, pool: torch.dtype) -> None:
    case = Case(torch.bfloat16, lengths=[30, 30], num_queries=[1, 1], pool=pool)
    clean = case.run(CpuAttention(kernels))
    getattr(case, what)[0][12, 0] = torch.nan
    poisoned = case.run(CpuAttention(kernels))
    assert poisoned[0, :3].isnan().all()  # the heads that read this KV head
    assert torch.equal(poisoned[0, 3:], clean[0, 3:])
    assert torch.equal(poisoned[1], clean[1])


@pytest.mark.parametrize("head_dim", [2, 12, 64])
def test_what_a_pool_of_int8_gives_back_is_the_rounded_value_itself(kernels: Any, head_dim: int) -> None:
    case = Case(torch.float32, lengths=[1, 1], num_queries=[1, 1], head_dim=head_dim, pool=torch.int8)
    case.values[1].zero_()
    for attention in (CpuAttention(kernels), ReferenceAttention()):
        mixed = case.run(attention).view(2, 3, 3, head_dim)  # one token: its softmax is 1
        rounded = dequantize_heads(quantize_heads(case.values[0][0]), head_dim)
        torch.testing.assert_close(mixed[0], rounded.unsqueeze(1).expand(3, 3, head_dim), rtol=1e-5, atol=1e-6)
        assert (mixed[1] == 0).all()
        largest = case.values[0][0].abs().amax(-1, keepdim=True)
        assert ((rounded - case.values[0][0]).abs() <= largest / 254 * 1.0001).all()
