"""SwappedEngine: an engine that can be put to sleep, and what is known about its memory and its times."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from caravan.server.engine.client import EngineClient
from caravan.server.engine.output_queue import ModelLoadFailed

MIN_TURN_SECONDS = 5.0  # for which a busy model stays, and for which others wait, before it has to go
RETRY_SECONDS = 5.0  # after a failed load, in which requests are rejected
FIRST_LOAD_SECONDS = 3.0  # expected, and the time to read the weights, until it has been measured
READ_BYTES_PER_SECOND = 300e6


@dataclass(eq=False, kw_only=True)
class SwappedEngine:
    """One engine of several that share a memory budget, or one that sleeps when it is idle.

    Times are those of time.monotonic().
    """

    name: str  # of its model
    client: EngineClient
    need_bytes: int  # while it is loaded: weights, KV pool and process
    load_seconds: float  # of the latest load; an estimate before the first one
    sleep_after_seconds: float | None = None  # None: it sleeps only if others need the memory
    drain_seconds: Callable[[], float] = field(default=lambda: 0.0)  # expected, until its running requests have ended
    is_changing: bool = False  # its process is being started or ended
    waits_since_seconds: float | None = None  # its oldest request that has no engine; None: there is none
    began_loading_seconds: float | None = None  # None: it is not loading
    loaded_at_seconds: float = -math.inf
    failed_at_seconds: float = -math.inf
    is_broken: bool = False  # the latest load failed because of the model or its options

    @property
    def is_resident(self) -> bool:
        """Whether it has memory."""
        return self.is_changing or self.client.state != "asleep"

    @property
    def is_idle(self) -> bool:
        """Whether it has memory and no requests: it can be put to sleep."""
        return self.is_resident and not self.is_changing and not self.client.requests.num_active

    @property
    def has_clients(self) -> bool:
        """Whether clients wait for an answer of it: not all of its requests are lines of batches."""
        return self.client.requests.num_urgent > 0

    @property
    def is_waiting(self) -> bool:
        """Whether it has requests and no process."""
        return not self.is_resident and len(self.client.requests) > 0

    @property
    def turn_seconds(self) -> float:
        """How long it stays although others wait: at least half of the time is not spent on loading."""
        return max(MIN_TURN_SECONDS, self.load_seconds)

    @property
    def idle_since_seconds(self) -> float:
        """When it was last used or loaded."""
        return max(self.client.requests.last_used_seconds, self.loaded_at_seconds)

    def check_load(self) -> None:
        """Raise ModelLoadFailed if the latest load has failed a short time ago."""
        if time.monotonic() - self.failed_at_seconds < RETRY_SECONDS:
            raise self.load_failed()

    def load_failed(self) -> ModelLoadFailed:
        """Return the error for its requests if it cannot be loaded."""
        fact = f"The model {self.name} cannot be loaded; the cause is in the server's log."
        return ModelLoadFailed(fact, is_permanent=self.is_broken)


def expected_load_seconds(weight_bytes: int) -> float:
    """Return an estimate of the time to load a model that was never loaded."""
    return FIRST_LOAD_SECONDS + weight_bytes / READ_BYTES_PER_SECOND
