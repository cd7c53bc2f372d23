"""Arrivals: which requests a fleet gets, and when."""

import bisect
import heapq
import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from caravan.cli.bench.lengths import Lengths
from caravan.cli.bench.prompts import PromptMaker
from caravan.cli.bench.workload import PlannedRequest, poisson_requests, trace_requests
from caravan.model.sampling.sampling_params import SamplingParams
from caravan.scheduler.messages import Request


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request and the time of its arrival."""

    request_id: int  # from 1
    seconds: float
    prompt_tokens: int  # after the shared prefix
    output_tokens: int
    prefix: int = 0  # which of the shared prefixes it begins with


@dataclass(frozen=True, kw_only=True)
class Load:
    """The requests of a simulation, in the order of their arrivals."""

    planned: Sequence[PlannedRequest]  # with arrival times
    shared_prefix_tokens: int = 0
    num_prefixes: int = 1
    seed: int = 0

    def arrivals(self) -> list[Arrival]:
        """Return all arrivals; the prefix of each one is drawn, all equally often."""
        source = random.Random(f"prefixes {self.seed}")
        return [
            Arrival(
                number,
                request.arrival_seconds or 0.0,
                request.prompt_tokens,
                request.output_tokens,
                source.randrange(self.num_prefixes),
            )
            for number, request in enumerate(self.planned, 1)
        ]

    def prompts(self) -> "Prompts":
        """Return the maker of its prompts."""
        return Prompts(self.shared_prefix_tokens, self.num_prefixes, self.seed)


class Prompts:
    """Makes the requests of arrivals: random tokens after a shared prefix. Every request ends by its length."""

    def __init__(self, shared_prefix_tokens: int = 0, num_prefixes: int = 1, seed: int = 0) -> None:
        self._makers = [
            PromptMaker(seed=seed * num_prefixes + number, shared_prefix_tokens=shared_prefix_tokens)
            for number in range(num_prefixes)
        ]

    def request(self, arrival: Arrival) -> Request:
        """Return a request with a new prompt."""
        prompt = self._makers[arrival.prefix].prompt(arrival.prompt_tokens)
        assert isinstance(prompt, list)
        params = SamplingParams(seed=0, max_tokens=arrival.output_tokens, temperature=0.0)
        return Request(request_id=arrival.request_id, prompt_token_ids=prompt, params=params)


def poisson(prompt: Lengths, output: Lengths, rate: float, seconds: float, seed: int) -> list[PlannedRequest]:
    """Return requests that arrive independently of each other for `seconds` seconds, `rate` a second on average."""
    requests = poisson_requests(prompt, output, rate, seed)
    return list(itertools.takewhile(lambda request: (request.arrival_seconds or 0.0) < seconds, requests))


def burst(prompt: Lengths, output: Lengths, num_requests: int, seed: int) -> list[PlannedRequest]:
    """Return requests that all arrive at once."""
    requests = itertools.islice(poisson_requests(prompt, output, 1.0, seed), num_requests)
    return [PlannedRequest(request.prompt_tokens, request.output_tokens, 0.0) for request in requests]


def trace(
    path: Path, *, time_scale: float = 1.0, copies: int = 1, seconds: float | None = None, seed: int = 0
) -> list[PlannedRequest]:
    """Return the requests of a trace in the format of Azure's, those that arrive before `seconds` only.

    With `copies`, that many times as many requests: each copy starts at another time of the trace and goes round. Their
    bursts do not coincide, as those of independent groups of users. Raises OSError or ValueError.
    """
    requests = trace_requests(path, time_scale)
    source = random.Random(f"copies {seed}")
    last = requests[-1].arrival_seconds or 0.0
    starts = [0.0, *(source.uniform(0.0, last) for _ in range(copies - 1))]
    merged = heapq.merge(*(_rotated(requests, start) for start in starts), key=_arrival_seconds)
    return [request for request in merged if seconds is None or _arrival_seconds(request) < seconds]


def cut(requests: Sequence[PlannedRequest], max_prompt: int | None, max_output: int | None) -> list[PlannedRequest]:
    """Return requests whose lengths are cut to limits."""
    if max_prompt is max_output is None:
        return list(requests)
    return [
        PlannedRequest(
            min(request.prompt_tokens, max_prompt or request.prompt_tokens),
            min(request.output_tokens, max_output or request.output_tokens),
            request.arrival_seconds,
        )
        for request in requests
    ]


def thinned(arrivals: Sequence[Arrival], parts: float, count: int, seed: int) -> list[list[Arrival]]:
    """Return `count` of `parts` parts of the arrivals; each request is in one part, drawn independently of the others.

    Parts of Poisson arrivals are Poisson arrivals.
    """
    source = random.Random(f"thinned {seed}")
    found: list[list[Arrival]] = [[] for _ in range(count)]
    for arrival in arrivals:
        part = int(source.random() * parts)
        if part < count:
            found[part].append(arrival)
    return found


def _rotated(requests: Sequence[PlannedRequest], start: float) -> Iterator[PlannedRequest]:
    """Yield the requests from a time on, and then those before it."""
    split = bisect.bisect_left(requests, start, key=_arrival_seconds)
    last = _arrival_seconds(requests[-1])
    for request in requests[split:]:
        yield PlannedRequest(request.prompt_tokens, request.output_tokens, _arrival_seconds(request) - start)
    for request in requests[:split]:
        yield PlannedRequest(request.prompt_tokens, request.output_tokens, _arrival_seconds(request) - start + last)


def _arrival_seconds(request: PlannedRequest) -> float:
    return request.arrival_seconds or 0.0
