"""Shares of a model: each output has exactly one rank, and each query head the KV head that it reads."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caravan.model.config import ModelConfig
from caravan.model.share import Share
from tests.support.tiny_llama import TINY

CONFIGS = st.builds(
    lambda num_kv_heads, group: replace(TINY, num_heads=num_kv_heads * group, num_kv_heads=num_kv_heads),
    st.integers(1, 12),
    st.integers(1, 8),
)
THREE_KV_HEADS = replace(TINY, num_heads=9, num_kv_heads=3)


@given(st.integers(1, 5000), st.integers(1, 12))
def test_each_output_has_one_rank_in_order(num_outputs: int, num_ranks: int) -> None:
    shares = [share.outputs(num_outputs) for share in Share(0, num_ranks).all()]
    assert [output for share in shares for output in share] == list(range(num_outputs))
    if num_outputs >= num_ranks:
        assert all(shares)


@pytest.mark.parametrize("num_ranks", [2, 3, 4])
@pytest.mark.parametrize("num_outputs", [576, 1536, 49_152, 32_003])
def test_ranks_have_whole_tiles_of_nearly_equal_number(num_outputs: int, num_ranks: int) -> None:
    shares = [share.outputs(num_outputs) for share in Share(0, num_ranks).all()]
    assert all(share.start % 32 == 0 for share in shares)
    assert max(map(len, shares)) - min(map(len, shares)) <= 32


@given(CONFIGS, st.data())
def test_query_heads_are_where_their_kv_head_is(config: ModelConfig, data: st.DataObject) -> None:
    num_ranks = data.draw(st.integers(1, config.num_heads))
    shares = Share(0, num_ranks).all()
    assert [head for share in shares for head in share.heads(config)] == list(range(config.num_heads))
    assert {head for share in shares for head in share.kv_heads(config)} == set(range(config.num_kv_heads))
    group = config.num_heads // config.num_kv_heads
    for share in shares:
        heads, kv_heads = share.heads(config), share.kv_heads(config)
        read = [kv_heads.start + i // (len(heads) // len(kv_heads)) for i in range(len(heads))]  # as attention does
        assert read == [head // group for head in heads]
        cached = share.cache_config(config)
        assert (cached.num_heads, cached.num_kv_heads) == (len(heads), len(kv_heads))


def test_ranks_beyond_the_kv_heads_divide_query_heads() -> None:
    shares = Share(0, 4).all()
    assert [list(share.kv_heads(THREE_KV_HEADS)) for share in shares] == [[0], [0], [1], [2]]
    assert [len(share.heads(THREE_KV_HEADS)) for share in shares] == [1, 2, 3, 3]


def test_more_ranks_than_query_heads_are_refused_in_one_line() -> None:
    Share(0, 9).check(THREE_KV_HEADS)
    with pytest.raises(ValueError, match=r"^A model with 9 query heads .* between at most 9 ranks; there are 10.$"):
        Share(0, 10).check(THREE_KV_HEADS)


@pytest.mark.parametrize(("rank", "num_ranks"), [(2, 2), (-1, 2), (0, 0)])
def test_there_is_no_rank_outside_the_number_of_ranks(rank: int, num_ranks: int) -> None:
    with pytest.raises(ValueError, match=f"no rank {rank} of {num_ranks}"):
        Share(rank, num_ranks)
