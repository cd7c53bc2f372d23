"""Plan an engine: its limits and its KV pool, from what the operator sets, the device and the free memory."""

from collections.abc import Callable
from typing import Literal

import msgspec

from caravan.scheduler.block_pool import num_blocks_for
from caravan.scheduler.config import PROCESS_BYTES, EngineConfig, EngineLimits, Shortage, Speculation

DEFAULT_MAX_MODEL_LEN = 8192  # the default, even if the model was trained for more


class DeviceDefaults(msgspec.Struct, frozen=True, kw_only=True):
    """The limits of a kind of device where the operator sets none."""

    max_batch_tokens: int
    max_num_seqs: int
    pool_share: float  # of the memory that is free after loading
    max_pool_fills: int | None  # how often the largest batch fits into the pool at most; None: no such bound
    has_text_drafts: bool  # without a draft model; not on a GPU, where steps that could have some do not overlap


CPU_DEFAULTS = DeviceDefaults(
    max_batch_tokens=512,
    max_num_seqs=64,
    pool_share=0.5,
    max_pool_fills=2,  # once for the requests that run, once for cached prefixes
    has_text_drafts=True,
)
GPU_DEFAULTS = DeviceDefaults(
    max_batch_tokens=8192, max_num_seqs=256, pool_share=0.9, max_pool_fills=None, has_text_drafts=False
)


def with_defaults(limits: EngineLimits, defaults: DeviceDefaults) -> EngineLimits:
    """Return limits with those of a device in place of None."""
    return msgspec.structs.replace(
        limits,
        max_batch_tokens=limits.max_batch_tokens if limits.max_batch_tokens is not None else defaults.max_batch_tokens,
        max_num_seqs=limits.max_num_seqs if limits.max_num_seqs is not None else defaults.max_num_seqs,
    )


def chosen_speculation(choice: Speculation, defaults: DeviceDefaults, *, has_draft: bool) -> Literal["on", "off"]:
    """Return whether there are draft tokens. auto: on, where they come from texts by default or from a draft model."""
    is_on = (defaults.has_text_drafts or has_draft) if choice == "auto" else choice == "on"
    return "on" if is_on else "off"


def standby_bytes(weight_bytes: int) -> int:
    """Return the memory that a standby takes: the weights again, and its process."""
    return weight_bytes + PROCESS_BYTES


def choose_max_model_len(limits: EngineLimits, max_position: int) -> int:
    """Return the maximum length of prompt and output together; raises ValueError if the model cannot have the limit."""
    most = DEFAULT_MAX_MODEL_LEN
    if limits.max_pool_tokens is not None:  # of which the pool has whole blocks
        most = max(limits.max_pool_tokens // limits.block_size, 1) * limits.block_size
    max_model_len = limits.max_model_len or min(max_position, DEFAULT_MAX_MODEL_LEN, most)
    if max_model_len > max_position:
        raise ValueError(
            f"max_model_len is {max_model_len}, but the model was trained for {max_position} tokens at most. "
            "Lower --max-model-len."
        )
    return max_model_len


def max_pool_blocks(limits: EngineLimits, max_model_len: int, defaults: DeviceDefaults) -> int | None:
    """Return the largest number of blocks of a pool whose size the operator has not set, None if there is no bound."""
    if limits.max_pool_tokens is not None:
        return max(limits.max_pool_tokens // limits.block_size, 1)
    if limits.kv_cache_memory_bytes is not None or defaults.max_pool_fills is None:
        return None
    max_num_seqs = limits.max_num_seqs or defaults.max_num_seqs
    return defaults.max_pool_fills * max_num_seqs * num_blocks_for(max_model_len, limits.block_size)


def plan_engine(
    limits: EngineLimits,
    *,
    kv_bytes_per_token: int,
    max_position: int,
    free_memory_bytes: int,
    weight_bytes: int,
    max_draft_position: int = 0,
    defaults: DeviceDefaults = CPU_DEFAULTS,
    step_bytes: Callable[[int, int, int], int] | None = None,
) -> EngineConfig:
    """Return the engine's configuration; raises ValueError, with the way out, if the limits contradict each other.

    `free_memory_bytes` is what is free once the weights are loaded. The pool leaves step_bytes(max_batch_tokens,
    max_num_seqs, max_model_len) of its share to the tensors of a step, unless the operator chooses its size; on a CPU
    it holds the largest batch twice at most. A standby takes `weight_bytes` of it again, and memory for its process.
    With a draft model, which was trained for max_draft_position tokens, kv_bytes_per_token is that of both models.
    """
    if limits.has_standby:
        needed_bytes = standby_bytes(weight_bytes)
        if needed_bytes > free_memory_bytes:
            raise Shortage(
                f"A standby needs {needed_bytes:,} bytes, but only {free_memory_bytes:,} are free. Leave out --standby."
            )
        free_memory_bytes -= needed_bytes
    limits = with_defaults(limits, defaults)
    assert limits.max_batch_tokens is not None
    assert limits.max_num_seqs is not None
    max_model_len = choose_max_model_len(limits, max_position)
    pool_bytes = int(free_memory_bytes * defaults.pool_share)
    if step_bytes is not None:
        pool_bytes = max(pool_bytes - step_bytes(limits.max_batch_tokens, limits.max_num_seqs, max_model_len), 0)
    if limits.kv_cache_memory_bytes is not None:
        pool_bytes = limits.kv_cache_memory_bytes
    if pool_bytes > free_memory_bytes:
        raise Shortage(
            f"The KV pool needs {pool_bytes:,} bytes, but only {free_memory_bytes:,} are free. Lower --kv-cache-memory."
        )
    num_blocks = pool_bytes // (kv_bytes_per_token * limits.block_size)
    most_blocks = max_pool_blocks(limits, max_model_len, defaults)
    if most_blocks is not None:
        num_blocks = min(num_blocks, most_blocks)
    return EngineConfig(
        num_blocks=max(num_blocks, 1),
        block_size=limits.block_size,
        max_batch_tokens=limits.max_batch_tokens,
        max_num_seqs=limits.max_num_seqs,
        max_model_len=max_model_len,
        speculation=chosen_speculation(limits.speculation, defaults, has_draft=max_draft_position > 0),
        max_inter_token_seconds=limits.max_inter_token_seconds,
        is_shared=limits.is_shared,
        max_draft_model_len=min(max_draft_position, max_model_len),
    )
