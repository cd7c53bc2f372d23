"""EngineConfig: the limits of one engine, chosen by the operator or from the free memory."""

from typing import Literal

import msgspec

from caravan.scheduler.block_pool import num_blocks_for

Speculation = Literal["auto", "on", "off"]  # as the operator chooses; `chosen_speculation` says what auto is

PROCESS_BYTES = 250_000_000  # of an engine process without weights and KV pool


class Shortage(ValueError):
    """There is not enough memory or disk space for a model now; at another time there may be."""


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
    num_ranks: int = 1  # processes that compute the model together

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


ADAPTER_NAME = r"[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,127}"  # a regular expression
MAX_ADAPTERS = 100  # that requests can name
MAX_RESIDENT_ADAPTERS = 8  # in memory, and so in a batch


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
    max_pool_tokens: int | None = None  # of a demo: the KV pool, and so a request, has no more
