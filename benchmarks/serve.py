"""Measure a server as its clients see it: streams at several levels of concurrency, p50 and p99.

`python -m benchmarks.serve` starts `caravan serve` on a free port; with --url it measures a server that already runs,
ours or another with the same API, so that two can be compared in the same minute.
"""

import argparse
import asyncio
import itertools
import json
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx


@dataclass
class Timing:
    """When the tokens of one stream came, in seconds."""

    started: float
    arrivals: list[float] = field(default_factory=list)

    @property
    def first_token(self) -> float:
        """From the request to the first token."""
        return self.arrivals[0] - self.started

    @property
    def gaps(self) -> list[float]:
        """Between one token and the next."""
        return [later - earlier for earlier, later in itertools.pairwise(self.arrivals)]


async def stream_once(client: httpx.AsyncClient, model: str, prompt: str, max_tokens: int) -> Timing:
    """Return the timing of one streamed completion of exactly max_tokens tokens."""
    body = {"model": model, "prompt": prompt, "max_tokens": max_tokens, "ignore_eos": True, "temperature": 0}
    timing = Timing(time.perf_counter())
    async with client.stream("POST", "/v1/completions", json=body | {"stream": True}) as response:
        if response.status_code != 200:
            raise SystemExit((await response.aread()).decode())
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                if "error" in json.loads(line.removeprefix("data: ")):
                    raise SystemExit(line)
                timing.arrivals.append(time.perf_counter())
    return timing


async def run_level(url: str, model: str, concurrency: int, prompt_words: int, max_tokens: int) -> str:
    """Return a line of figures for so many streams at once; no two prompts share a prefix."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=None, limits=limits, trust_env=False) as client:
        prompts = [f"{i} {time.time_ns()} " + "word " * prompt_words for i in range(concurrency)]
        started = time.perf_counter()
        timings = await asyncio.gather(*(stream_once(client, model, prompt, max_tokens) for prompt in prompts))
        seconds = time.perf_counter() - started
    first = [timing.first_token * 1000 for timing in timings]
    gaps = [gap * 1000 for timing in timings for gap in timing.gaps] or [0.0]
    return (
        f"{concurrency:>7} {concurrency * max_tokens / seconds:>9.1f} {percentile(first, 50):>12.0f} "
        f"{percentile(first, 99):>12.0f} {percentile(gaps, 50):>9.1f} {percentile(gaps, 99):>9.1f}"
    )


def percentile(values: list[float], percent: int) -> float:
    """Return the percentile by the nearest rank above."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(percent / 100 * len(ordered)))]


@contextmanager
def own_server(model: str) -> Iterator[str]:
    """Start our server on a free port; the value is its URL."""
    command = [sys.executable, "-m", "server.cli", "serve", model, "--port", "0", "--served-model-name", "bench"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                print(line, end="")
                if found := re.search(r"^Ready\s+(http://\S+)/v1 ", line):
                    yield found[1]
                    break
            else:
                raise SystemExit("the server did not start")
        finally:
            process.terminate()


def main() -> None:
    """Print a table, the median repeat for each level."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2", help="what our own server loads")
    parser.add_argument("--url", help="measure this server instead")
    parser.add_argument("--name", default="bench", help="what requests call the model")
    parser.add_argument("--concurrency", default="1,8,32", help="levels, with commas between")
    parser.add_argument("--prompt-words", type=int, default=100)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    if arguments.url:
        measure(arguments.url, arguments)
    else:
        with own_server(arguments.model) as url:
            measure(url, arguments)


def measure(url: str, arguments: argparse.Namespace) -> None:
    """Run all levels against one server."""
    print(f"{platform.processor() or platform.machine()}, {time.strftime('%Y-%m-%d')}, ", end="")
    print(f"{arguments.prompt_words} words in, {arguments.max_tokens} tokens out, {arguments.repeats} repeats")
    print("streams  tokens/s  first p50 ms first p99 ms  gap p50   gap p99")
    asyncio.run(run_level(url, arguments.name, 1, arguments.prompt_words, 4))  # warm-up
    for concurrency in map(int, arguments.concurrency.split(",")):
        lines = [
            asyncio.run(run_level(url, arguments.name, concurrency, arguments.prompt_words, arguments.max_tokens))
            for _ in range(arguments.repeats)
        ]
        rates = [float(line.split()[1]) for line in lines]
        print(lines[rates.index(statistics.median_low(rates))])


if __name__ == "__main__":
    main()
