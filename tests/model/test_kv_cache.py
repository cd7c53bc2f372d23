"""KVCache: its dtype, and blocks that are copied and cleared."""

import pytest
import torch

from caravan.model.kv_cache import KVCache, choose_kv_dtype, kv_bytes_per_token
from tests.support.tiny_llama import TINY

CPU = torch.device("cpu")


def test_the_dtype_of_the_pool_follows_the_choice_and_the_model() -> None:
    assert choose_kv_dtype("auto", torch.float32) == torch.float32
    assert choose_kv_dtype("bfloat16", torch.bfloat16) == torch.bfloat16
    assert choose_kv_dtype("int8", torch.float32) == torch.int8
    with pytest.raises(ValueError, match="--kv-cache-dtype bfloat16 cannot be combined with"):
        choose_kv_dtype("bfloat16", torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_the_size_of_the_pool_is_that_of_its_tokens(dtype: torch.dtype) -> None:
    cache = KVCache(TINY, num_blocks=3, block_size=4, dtype=dtype, device=CPU)
    assert cache.num_bytes == 3 * 4 * kv_bytes_per_token(TINY, dtype)


def test_a_block_is_copied_and_cleared_in_every_layer() -> None:
    cache = KVCache(TINY, num_blocks=3, block_size=4, dtype=torch.float32, device=CPU)
    pools = cache.keys + cache.values
    for number, pool in enumerate(pools):
        pool.copy_(torch.full(pool.shape, float("nan")))
        pool[1] = number + 1.0
    cache.copy_block(1, 2)
    cache.clear_block(0)
    for number, pool in enumerate(pools):
        assert (pool[2] == number + 1.0).all()
        assert (pool[0] == 0).all()


def test_a_pool_on_another_device_is_not_prefaulted() -> None:
    cache = KVCache(TINY, num_blocks=3, block_size=4, dtype=torch.float32, device=torch.device("meta"))
    cache.prefault(2**20)
    assert all(pool.is_meta for pool in cache.keys)
