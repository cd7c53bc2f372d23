"""Journal: what happened to the requests of a run, real or simulated, and the figures of it."""

import math
from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields

import numpy as np

from caravan.scheduler.messages import StepOutput, StepStats


@dataclass(slots=True)
class Journey:
    """One request. Times are in seconds since the start of the run; NaN: not yet."""

    arrived: float
    prompt_tokens: int
    first_token: float = math.nan
    last_token: float = math.nan
    ended: float = math.nan
    num_tokens: int = 0


@dataclass(frozen=True)
class Quantiles:
    """How a time is distributed, in seconds, by nearest rank."""

    p50: float
    p95: float
    p99: float

    @classmethod
    def of(cls, values: "array[float] | Iterable[float]") -> "Quantiles":
        """Return the quantiles of values; NaN where there are none."""
        ordered = np.sort(np.fromiter(values, dtype=np.float64))
        if not len(ordered):
            return cls(math.nan, math.nan, math.nan)
        p50, p95, p99 = (float(ordered[max(math.ceil(part * len(ordered)) - 1, 0)]) for part in (0.5, 0.95, 0.99))
        return cls(p50, p95, p99)


@dataclass(frozen=True, kw_only=True)
class Figures:
    """The figures of a run. Rates are per second from the first arrival to the last end."""

    num_requests: int  # that ended
    num_rejected: int  # longer than max_model_len
    seconds: float
    requests_per_second: float
    output_tokens_per_second: float
    prompt_tokens_per_second: float  # those from the prefix cache too
    first_token: Quantiles
    between_tokens: Quantiles  # every gap between two tokens of a request
    end_to_end: Quantiles
    num_preemptions: int
    mean_pool_use: float  # part of the blocks that sequences hold, over the time of steps
    max_pool_use: float
    hit_rate: float  # part of the looked up prompt tokens that the prefix cache had
    busy: float  # part of the time in which a replica runs a step

    def rates(self) -> Mapping[str, float]:
        """Return all numbers of it by name."""
        found: dict[str, float] = {}
        for one in fields(self):
            value = getattr(self, one.name)
            if isinstance(value, Quantiles):
                found |= {f"{one.name} {name}": getattr(value, name) for name in ("p50", "p95", "p99")}
            else:
                found[one.name] = float(value)
        return found


@dataclass
class Journal:
    """The requests of one run by id, the gaps between tokens, and sums over its steps."""

    num_replicas: int = 1
    journeys: dict[int, Journey] = field(default_factory=dict)
    gaps: "array[float]" = field(default_factory=lambda: array("d"))
    num_rejected: int = 0
    num_steps: int = 0
    step_seconds: float = 0.0
    num_preemptions: int = 0
    pool_seconds: float = 0.0  # part of the pool in use, times seconds
    max_pool_use: float = 0.0
    num_queries: int = 0
    num_hits: int = 0

    def arrive(self, request_id: int, seconds: float, prompt_tokens: int) -> None:
        """Record the arrival of a request."""
        assert request_id not in self.journeys
        self.journeys[request_id] = Journey(seconds, prompt_tokens)

    def deliver(self, request_id: int, seconds: float, num_tokens: int, *, is_last: bool) -> None:
        """Record tokens that arrive together at the client."""
        journey = self.journeys[request_id]
        if num_tokens:
            if journey.num_tokens:
                self.gaps.append(seconds - journey.last_token)
            else:
                journey.first_token = seconds
            journey.num_tokens += num_tokens
            journey.last_token = seconds
        if is_last:
            journey.ended = seconds

    def count_step(self, stats: StepStats, seconds: float) -> None:
        """Record a step of `seconds` seconds."""
        self.num_steps += 1
        self.step_seconds += seconds
        self.num_preemptions += stats.num_preemptions
        pool_use = stats.num_used_blocks / stats.num_blocks
        self.pool_seconds += seconds * pool_use
        self.max_pool_use = max(self.max_pool_use, pool_use)
        self.num_queries += stats.prefix_cache_queries
        self.num_hits += stats.prefix_cache_hits

    def deliver_step(self, output: StepOutput, seconds: float) -> None:
        """Record the tokens of a step that all arrive at the same time."""
        for one in output.outputs:
            assert one.error is None, one.error
            self.deliver(one.request_id, seconds, len(one.token_ids), is_last=one.finish_reason is not None)

    def figures(self) -> Figures:
        """Return the figures of the requests that have ended."""
        ended = [journey for journey in self.journeys.values() if not math.isnan(journey.ended)]
        start = min((journey.arrived for journey in self.journeys.values()), default=0.0)
        seconds = max((journey.ended for journey in ended), default=start) - start
        per_second = 1 / seconds if seconds > 0 else 0.0
        return Figures(
            num_requests=len(ended),
            num_rejected=self.num_rejected,
            seconds=seconds,
            requests_per_second=len(ended) * per_second,
            output_tokens_per_second=sum(journey.num_tokens for journey in ended) * per_second,
            prompt_tokens_per_second=sum(journey.prompt_tokens for journey in ended) * per_second,
            first_token=Quantiles.of(journey.first_token - journey.arrived for journey in ended),
            between_tokens=Quantiles.of(self.gaps),
            end_to_end=Quantiles.of(journey.ended - journey.arrived for journey in ended),
            num_preemptions=self.num_preemptions,
            mean_pool_use=self.pool_seconds / self.step_seconds if self.step_seconds else 0.0,
            max_pool_use=self.max_pool_use,
            hit_rate=self.num_hits / self.num_queries if self.num_queries else 0.0,
            busy=self.step_seconds * per_second / self.num_replicas,
        )
