"""HttpServer: the same engine behind HTTP on this machine, its requests, and what its API process costs."""

import asyncio
import statistics
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from benchmarks.server_process import ServerProcess, running
from benchmarks.simulation.api_cost import ApiCost
from benchmarks.simulation.arrivals import Load, burst
from benchmarks.simulation.cost_file import CostFile
from benchmarks.simulation.fleet import simulate
from benchmarks.simulation.journal import Journal, Journey
from benchmarks.variants import Variant
from caravan.cli.bench.endpoint import find_endpoint
from caravan.cli.bench.http_connection import HttpConnections
from caravan.cli.bench.lengths import parse_lengths
from caravan.cli.bench.load import open_loop
from caravan.cli.bench.measurement import Measurement
from caravan.cli.bench.workload import PlannedRequest

TIMEOUT_SECONDS = 300.0  # of a request
ALONE_SECONDS = 1.0  # between requests that are measured alone, and more if they take longer
NUM_ALONE = 12
NUM_TOGETHER = 16


@contextmanager
def served(costs: CostFile) -> Iterator[ServerProcess]:
    """Start a server with the engine of a cost file on a free port of this machine, and stop it at the end.

    Raises ServerFailed.
    """
    start, config = costs.start, costs.config
    arguments = [
        *("-m", "caravan", "serve", "{model}", "--host", "127.0.0.1", "--port", "{port}", "--speculation", "off"),
        *("--dtype", start.dtype, "--quantization", start.quantization, "--kv-cache-dtype", start.kv_cache_dtype),
        *("--kv-cache-memory", f"{costs.kv_bytes_per_token * config.num_tokens}B"),
        *("--block-size", f"{config.block_size}", "--max-model-len", f"{config.max_model_len}"),
        *("--max-batch-tokens", f"{config.max_batch_tokens}", "--max-num-seqs", f"{config.max_num_seqs}"),
    ]
    if start.num_threads is not None:
        arguments += ["--num-threads", f"{start.num_threads}"]
    program, model = Path(sys.executable), Path(start.model_path)
    variant = Variant("Caravan", "caravan", start.dtype, program, model, tuple(arguments))
    with tempfile.TemporaryDirectory() as folder, running(variant, Path(folder) / "log") as server:
        yield server


def record_http(url: str, load: Load) -> Journal:
    """Send the requests of a load, which have one prefix at most, and return what happened to them.

    Raises ValueError if a request fails.
    """
    assert load.num_prefixes == 1
    measurements = asyncio.run(_measurements(url, load))
    journal = Journal()
    for number, one in enumerate(sorted(measurements, key=lambda measurement: measurement.due), 1):
        if one.error is not None:
            raise ValueError(f"A request failed: {one.error} {one.error_text}")
        journal.arrive(number, one.due, one.prompt_tokens)
        for moment in one.token_times[:-1]:
            journal.deliver(number, moment, 1, is_last=False)
        rest = one.output_tokens - len(one.token_times) + 1  # several tokens may come in one event
        journal.deliver(number, one.token_times[-1], rest, is_last=True)
    return journal


def measure_api(url: str, pid: int, costs: CostFile) -> ApiCost:
    """Return the cost of a server's API process.

    That of a request is what its first token takes longer than the simulated one while the server has no other request;
    that of a token is the processor time of the process while several streams run, divided by their tokens.
    """
    prompt, output = parse_lengths("64"), parse_lengths("16")
    times = simulate_alone(costs, burst(prompt, output, 1, seed=0))
    spaced = [
        PlannedRequest(one.prompt_tokens, one.output_tokens, number * max(ALONE_SECONDS, 4 * times.ended))
        for number, one in enumerate(burst(prompt, output, NUM_ALONE, seed=1))
    ]
    alone = record_http(url, Load(planned=spaced, seed=1))
    first = statistics.median(journey.first_token - journey.arrived for journey in alone.journeys.values())
    api = psutil.Process(pid)
    before = api.cpu_times()
    together = Load(planned=burst(prompt, parse_lengths("96"), NUM_TOGETHER, seed=2), seed=2)
    num_tokens = sum(journey.num_tokens for journey in record_http(url, together).journeys.values())
    after = api.cpu_times()
    return ApiCost(
        request_seconds=max(first - times.first_token, 0.0),
        token_seconds=(after.user + after.system - before.user - before.system) / num_tokens,
    )


def simulate_alone(costs: CostFile, planned: list[PlannedRequest]) -> Journey:
    """Return the times of one request at an idle engine without an API process; it arrives at 0."""
    load = Load(planned=planned)
    journal = simulate(load.arrivals(), load.prompts(), config=costs.config, cost=costs.cost, api=ApiCost())
    (journey,) = journal.journeys.values()
    return journey


async def _measurements(url: str, load: Load) -> list[Measurement]:
    connections = HttpConnections(url)
    found: list[Measurement] = []
    try:
        endpoint = await find_endpoint(connections, model=None, is_chat=False, is_stream=True, temperature=0.0)
        prompts = endpoint.prompt_maker(seed=load.seed, shared_prefix_tokens=load.shared_prefix_tokens)
        await open_loop(endpoint, prompts, load.planned, timeout_seconds=TIMEOUT_SECONDS, on_end=found.append)
    finally:
        connections.close()
    return found
