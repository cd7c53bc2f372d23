"""RankedEngine: an engine whose model is computed by several ranks, of which this process is the first."""

import torch
from typing_extensions import override

from caravan.model.kv_cache import KVCache
from caravan.model.share import Share
from caravan.scheduler.engine import Engine
from caravan.scheduler.ranked_model import RankedKVCache, RankedModel


class RankedEngine(Engine):
    """An engine like any other: only its model and its KV cache know that there are ranks."""

    model: RankedModel

    @override
    def close(self) -> None:
        self.model.ranks.close()

    @override
    def _new_kv_cache(self, num_blocks: int, kv_dtype: torch.dtype) -> KVCache:
        model, block_size = self.model, self.config.block_size
        config = Share(0, model.ranks.num_ranks).cache_config(model.config)
        return RankedKVCache(model.ranks, config, num_blocks, block_size, kv_dtype, self._device)
