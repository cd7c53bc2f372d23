"""EngineConfig: the limits of one engine, chosen by the operator or from the free memory."""

from collections.abc import Callable
from typing import Literal

import msgspec

from caravan.scheduler.block_pool import num_blocks_for

Speculation = Literal["auto", "on", "off"]  # as the operator chooses; `chosen_speculation` says what auto is

PROCESS_BYTES = 250_000_000  # of an engine process without weights and KV pool
DEFAULT_MAX_MODEL_LEN = 8192  # the default, even if the model was trained for more


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The limits of a running engine. Sizes are in tokens unless the name says blocks or sequences."""

    num_blocks: int  # blocks in the KV pool
    block_size: int = 16  # tokens in a block
    max_batch_tokens: int = 512  # tokens computed in one step, over all sequences
    max_num_seqs: int = 64  # sequences running at once
    max_model_len: int = 2048  # prompt and output of one sequence
    speculation: Literal["on", "off"] = "off"  # on: draft tokens where they pay
    max_inter_token_seconds: float | None = None  # target of a step while sequences decode; None: no target
    is_shared: bool = False  # by several API keys
    max_draft_model_len: int = 0  # tokens that the draft model can read; 0: there is none

    def __post_init__(self) -> None:
        for name in ("num_blocks", "block_size", "max_batch_tokens", "max_num_seqs", "max_model_len"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        if self.max_model_len < 2:
            raise ValueError("max_model_len is 1; a request needs room for a prompt token and an output token.")
        if self.max_model_len > self.num_tokens:
            raise ValueError(
                f"A request of {self.max_model_len} tokens (max_model_len) does not fit in a KV pool of "
                f"{self.num_tokens} tokens. Lower --max-model-len or raise --kv-cache-memory."
            )

    @property
    def num_tokens(self) -> int:
        """Tokens the KV pool holds."""
        return self.num_blocks * self.block_size

    @property
    def max_num_blocks(self) -> int:
        """Blocks that the longest sequence needs."""
        return num_blocks_for(self.max_model_len, self.block_size)

    def num_requests_of(self, num_tokens: int) -> int:
        """Return how many requests of num_tokens tokens each, prompt and output together, the KV pool holds."""
        return self.num_blocks // num_blocks_for(num_tokens, self.block_size)


class EngineLimits(msgspec.Struct, frozen=True, kw_only=True):
    """The limits that the operator sets; None leaves the choice to the engine."""

    kv_cache_memory_bytes: int | None = None  # None: the device's share of the memory that is free after loading
    max_model_len: int | None = None  # None: what the model was trained for, at most DEFAULT_MAX_MODEL_LEN
    block_size: int = 16
    max_batch_tokens: int | None = None  # None: the default of the device
    max_num_seqs: int | None = None  # the same
    speculation: Speculation = "auto"
    max_inter_token_seconds: float | None = None  # target of running streams while prompts are computed
    is_shared: bool = False  # by several API keys
    has_standby: bool = False  # leave memory for a second process with the same weights


class DeviceDefaults(msgspec.Struct, frozen=True, kw_only=True):
    """The limits of a kind of device where the operator sets none."""

    max_batch_tokens: int
    max_num_seqs: int
    pool_share: float  # of the memory that is free after loading
    has_text_drafts: bool  # without a draft model; not on a GPU, where steps that could have some do not overlap


CPU_DEFAULTS = DeviceDefaults(max_batch_tokens=512, max_num_seqs=64, pool_share=0.5, has_text_drafts=True)
GPU_DEFAULTS = DeviceDefaults(max_batch_tokens=8192, max_num_seqs=256, pool_share=0.9, has_text_drafts=False)


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
    max_model_len = limits.max_model_len or min(max_position, DEFAULT_MAX_MODEL_LEN)
    if max_model_len > max_position:
        raise ValueError(
            f"max_model_len is {max_model_len}, but the model was trained for {max_position} tokens at most. "
            "Lower --max-model-len."
        )
    return max_model_len


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
    max_num_seqs, max_model_len) of its share to the tensors of a step, unless the operator chooses its size. A standby
    takes `weight_bytes` of it again, and memory for its process. With a draft model, which was trained for
    max_draft_position tokens, kv_bytes_per_token is that of both models.
    """
    if limits.has_standby:
        needed_bytes = standby_bytes(weight_bytes)
        if needed_bytes > free_memory_bytes:
            raise ValueError(
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
        raise ValueError(
            f"The KV pool needs {pool_bytes:,} bytes, but only {free_memory_bytes:,} are free. Lower --kv-cache-memory."
        )
    num_blocks = pool_bytes // (kv_bytes_per_token * limits.block_size)
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
