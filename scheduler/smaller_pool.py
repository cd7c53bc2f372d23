"""A smaller KV pool, for a GPU whose memory is too small for the steps beside it."""

from collections.abc import Sequence

import msgspec
import torch

from caravan.model.kv_cache import KVCache
from caravan.scheduler.block_manager import BlockManager
from caravan.scheduler.block_pool import BlockPool
from caravan.scheduler.config import EngineConfig
from caravan.scheduler.draft_tokens import DraftTokens
from caravan.scheduler.scheduler import Scheduler

KEPT_SHARE = 0.9  # of the blocks


def smaller_config(config: EngineConfig) -> EngineConfig:
    """Return a configuration with fewer blocks; raises MemoryError, with the way out, if no request would fit."""
    num_blocks = int(KEPT_SHARE * config.num_blocks)
    if num_blocks < config.max_num_blocks:
        raise MemoryError(
            f"The GPU has too little memory for a step, and the KV pool of {config.num_tokens:,} tokens cannot be "
            f"smaller with requests of {config.max_model_len:,} tokens. Lower --max-batch-tokens, --max-num-seqs or "
            "--max-model-len."
        )
    return msgspec.structs.replace(config, num_blocks=num_blocks)


def shrink_pool(scheduler: Scheduler, kv_caches: Sequence[KVCache]) -> EngineConfig:
    """Preempt all running sequences, take blocks from the scheduler and the caches and return the new configuration.

    Nothing is lost but time: sequences compute their tokens again. Raises MemoryError; see smaller_config.
    """
    config = smaller_config(scheduler.config)
    num_removed = scheduler.config.num_blocks - config.num_blocks
    for sequence in reversed(scheduler.running[:]):  # the oldest last: it comes first in the queue
        scheduler.preempt(sequence)
    scheduler.config = config
    for block in scheduler.pool.cached_blocks():
        scheduler.pool.forget(block)
    history = scheduler.pool.history
    scheduler.pool = BlockPool(config.num_blocks, scheduler.clock)
    scheduler.pool.history = history
    scheduler.blocks = BlockManager(scheduler.pool, config.block_size)
    if scheduler.draft_tokens is not None:
        has_draft_model = scheduler.draft_tokens.model is not None  # it may have failed
        scheduler.draft_tokens = DraftTokens(config, scheduler.blocks)
        if not has_draft_model:
            scheduler.draft_tokens.model = None
    for kv_cache in kv_caches:
        kv_cache.release()  # all of them before one is allocated
    torch.cuda.empty_cache()  # also what the failed step has left in pieces; nothing without a GPU
    for kv_cache in kv_caches:
        kv_cache.allocate(kv_cache.num_blocks - num_removed)
    return config
