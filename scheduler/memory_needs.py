"""MemoryNeeds: the memory that an engine needs, as the API process and the planning process exchange it."""

import msgspec

from caravan.scheduler.config import EngineConfig
from caravan.scheduler.messages import StartEngine


class MemoryNeeds(msgspec.Struct, frozen=True, kw_only=True):
    """The configuration of an engine that has not been started, and its bytes of memory."""

    config: EngineConfig
    vocab_size: int
    weight_bytes: int
    kv_cache_bytes: int
    rest_bytes: int  # its process; on a GPU the tensors of a step; a standby

    @property
    def total_bytes(self) -> int:
        """All of them."""
        return self.weight_bytes + self.kv_cache_bytes + self.rest_bytes


class PlanMemory(msgspec.Struct, frozen=True, kw_only=True):
    """The question: what do these engines need?"""

    starts: list[StartEngine]
    budget_bytes: int | None = None  # None: a share of the memory that is free


class MemoryPlan(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The answer, in the order of the engines."""

    budget_bytes: int
    needs: list[MemoryNeeds]


class PlanFailed(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """An engine that can never be started: its index, and a line for the operator."""

    index: int
    reason: str
