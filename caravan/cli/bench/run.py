"""Run: measure one server under each of the requested loads."""

import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from caravan.cli.bench import BenchFailed
from caravan.cli.bench.answer import AnswerFailed
from caravan.cli.bench.endpoint import CONNECTION_ERRORS, Endpoint, connection_error, find_endpoint
from caravan.cli.bench.http_connection import HttpConnections
from caravan.cli.bench.lengths import Lengths
from caravan.cli.bench.load import closed_loop, open_loop
from caravan.cli.bench.measurement import Measurement
from caravan.cli.bench.report import Report, make_report
from caravan.cli.bench.workload import PlannedRequest, bounded, poisson_requests, steady_requests, trace_requests

_REQUESTS_PER_STREAM = 4  # where nothing bounds a closed loop
_DEFAULT_ARRIVALS = 100
_WARM_UP_TOKENS = (64, 4)


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """What to measure."""

    url: str
    model: str | None  # None: the server's first
    api_key: str | None
    is_chat: bool
    is_stream: bool
    concurrency: tuple[int, ...]  # a run for each; without a rate and a trace
    rate: float | None  # arrivals a second
    trace: Path | None
    time_scale: float
    prompt: Lengths
    output: Lengths
    shared_prefix_tokens: int
    max_requests: int | None
    max_seconds: float | None
    timeout_seconds: float
    max_first_token_seconds: float | None
    max_between_tokens_seconds: float | None
    temperature: float
    seed: int


@dataclass
class Run:
    """The measurements of one load, collected while it runs."""

    load: str
    num_planned: int | None
    measurements: list[Measurement]
    client_seconds: float = 0.0

    def report(self, options: BenchOptions) -> Report:
        """Return the report of the load."""
        return make_report(
            self.measurements,
            load=self.load,
            max_first_token_seconds=options.max_first_token_seconds,
            max_between_tokens_seconds=options.max_between_tokens_seconds,
            client_seconds=self.client_seconds,
        )


async def run_bench(
    options: BenchOptions, runs: list[Run], on_start: Callable[[Endpoint], None], on_end: Callable[[Run], None]
) -> None:
    """Measure the server. Each run is appended to `runs` before it starts, and is updated while it lasts.

    `on_end` is called after each request. Raises BenchFailed.
    """
    connections = HttpConnections(options.url, _headers(options.api_key))
    try:
        endpoint = await find_endpoint(
            connections,
            model=options.model,
            is_chat=options.is_chat,
            is_stream=options.is_stream,
            temperature=options.temperature,
        )
        on_start(endpoint)
        for number, concurrency in enumerate(options.concurrency if _is_closed(options) else (0,)):
            await _run_one(endpoint, options, number, concurrency, runs, on_end)
    finally:
        connections.close()


async def _run_one(
    endpoint: Endpoint,
    options: BenchOptions,
    number: int,
    concurrency: int,
    runs: list[Run],
    on_end: Callable[[Run], None],
) -> None:
    # A seed for each run, so that no prompt is still in a prefix cache.
    seed = options.seed * 1000 + number
    prompts = endpoint.prompt_maker(seed=seed, shared_prefix_tokens=options.shared_prefix_tokens)
    load, requests, num_planned = _planned(options, concurrency, seed)
    run = Run(load, num_planned, [])

    def ended(measurement: Measurement) -> None:
        run.measurements.append(measurement)
        run.client_seconds = time.process_time() - cpu_start
        on_end(run)

    warm_up = endpoint.prompt_maker(seed=-1 - seed, shared_prefix_tokens=0)
    try:
        await endpoint.ask(warm_up.prompt(_WARM_UP_TOKENS[0]), _WARM_UP_TOKENS[1])
    except AnswerFailed as error:
        raise BenchFailed(f"{endpoint.path} returned {error}") from None
    except CONNECTION_ERRORS as error:
        raise BenchFailed(f"{endpoint.path}: {connection_error(error)}.") from None
    runs.append(run)
    cpu_start = time.process_time()
    if _is_closed(options):
        await closed_loop(
            endpoint,
            prompts,
            requests,
            concurrency=concurrency,
            max_seconds=options.max_seconds,
            timeout_seconds=options.timeout_seconds,
            on_end=ended,
        )
    else:
        await open_loop(endpoint, prompts, requests, timeout_seconds=options.timeout_seconds, on_end=ended)


def _planned(options: BenchOptions, concurrency: int, seed: int) -> tuple[str, Iterator[PlannedRequest], int | None]:
    """Return a load's name, its requests, and their number if it is known."""
    count = options.max_requests
    if options.trace is not None:
        try:
            trace = trace_requests(options.trace, options.time_scale)
        except (OSError, ValueError) as error:
            raise BenchFailed(f"Cannot read the trace: {error}") from None
        requests = list(bounded(iter(trace), count, options.max_seconds))
        return "trace", iter(requests), len(requests)
    if options.rate is not None:
        if count is None and options.max_seconds is None:
            count = _DEFAULT_ARRIVALS
        arrivals = poisson_requests(options.prompt, options.output, options.rate, seed)
        requests = list(bounded(arrivals, count, options.max_seconds))
        return f"{options.rate:g} a second", iter(requests), len(requests)
    if count is None and options.max_seconds is None:
        count = _REQUESTS_PER_STREAM * concurrency
    steady = itertools.islice(steady_requests(options.prompt, options.output, seed), count)
    return f"{concurrency} at a time", steady, count


def _is_closed(options: BenchOptions) -> bool:
    return options.rate is None and options.trace is None


def _headers(api_key: str | None) -> Mapping[str, str]:
    return {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
