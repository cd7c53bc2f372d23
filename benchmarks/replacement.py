"""Kill the engine again and again among streams, with a standby: `python -m benchmarks.replacement FILE`.

Prints how long no engine was ready, and the longest pause that a stream saw; every answer must be that of a run without
kills. FILE is a model such as benchmarks/shapes.py writes.
"""

import argparse
import asyncio
import json
import os
import random
import re
import signal
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from benchmarks.compare import keep_packed_weights
from benchmarks.variants import file_variants
from tests.support.running_server import RunningServer, running_server

POLL_SECONDS = 0.01


@dataclass
class Report:
    """What came of the kills."""

    num_answers: int = 0
    num_wrong: int = 0  # cut or changed
    absence_seconds: list[float] = field(default_factory=list)  # from a kill to an engine that is ready
    pause_seconds: list[float] = field(default_factory=list)  # the longest of each answer, between two events


async def answer_to(http: httpx.AsyncClient, body: dict[str, Any]) -> tuple[str, float]:
    """Return the text of a streamed completion, and its longest pause after the first event in seconds."""
    text, longest, last = "", 0.0, None
    async with http.stream("POST", "/v1/completions", json=body) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            now = time.monotonic()
            longest, last = max(longest, now - (last or now)), now
            text += json.loads(line.removeprefix("data: "))["choices"][0]["text"]
    return text, longest


async def metric(http: httpx.AsyncClient, name: str) -> float:
    """Return the sum of a metric over its labels."""
    text = (await http.get("/metrics")).text
    return sum(float(value) for value in re.findall(rf"^caravan_{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE))


async def kill_engines(server: RunningServer, bodies: list[dict[str, Any]], num_kills: int, seed: int) -> Report:
    """Kill engines at random moments, each as soon as a standby is ready and tokens have come."""
    report, dice, stopping = Report(), random.Random(seed), asyncio.Event()
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=server.url, timeout=600, trust_env=False, limits=limits) as http:
        expected = [text for text, _ in await asyncio.gather(*(answer_to(http, body) for body in bodies))]

        async def keep_asking(index: int) -> None:
            number = 0
            while not stopping.is_set():
                number += 1  # a salt of its own: no draft tokens from the answer before
                try:
                    text, pause = await answer_to(http, bodies[index] | {"cache_salt": str(number)})
                except httpx.HTTPStatusError:  # asked while there was no engine
                    await asyncio.sleep(POLL_SECONDS)
                    continue
                report.num_answers += 1
                report.num_wrong += text != expected[index]
                report.pause_seconds.append(pause)

        streams = [asyncio.create_task(keep_asking(index)) for index in range(len(bodies))]
        for _ in range(num_kills):
            before = await metric(http, "generation_tokens_total")
            while not await metric(http, "standby_ready") or (
                await metric(http, "generation_tokens_total") < before + 2 * len(bodies)
            ):
                await asyncio.sleep(POLL_SECONDS)
            await asyncio.sleep(dice.uniform(0, 1))
            restarts, began = await metric(http, "engine_restarts_total"), time.monotonic()
            os.kill(server.engine_pid(), signal.SIGKILL)
            while await metric(http, "engine_restarts_total") == restarts or (
                (await http.get("/readyz")).status_code != 200
            ):
                await asyncio.sleep(POLL_SECONDS)
            report.absence_seconds.append(time.monotonic() - began)
            kills, longest = len(report.absence_seconds), max(report.pause_seconds, default=0.0)
            print(f"kill {kills}: {report.num_wrong} wrong, longest pause {longest:.2f} s", flush=True)
        stopping.set()
        await asyncio.gather(*streams)
    return report


def main() -> None:
    """Print what came of the kills."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=64, help="of each answer")
    parser.add_argument("--kv-spill", help="size of a file of cached blocks, such as 1GiB; without it none")
    arguments = parser.parse_args()
    bodies = [
        {
            "model": arguments.file.stem,
            "prompt": f"{index} is a number of which there is much to say.",
            "max_tokens": arguments.tokens,
            "ignore_eos": True,
            "temperature": 0.8,
            "seed": index,
            "stream": True,
        }
        for index in range(arguments.streams)
    ]
    options = ["--standby", "--kv-cache-memory", "1GiB", "--max-model-len", "1024"]
    with tempfile.TemporaryDirectory() as folder:
        # Until the packed weights are in a file, each replacement packs them again.
        keep_packed_weights(file_variants(Path(folder), arguments.file), Path(folder) / "first-start.log")
        if arguments.kv_spill:
            options += ["--kv-spill", arguments.kv_spill, "--kv-spill-path", f"{folder}/blocks"]
        with running_server(arguments.file, *options) as server:
            report = asyncio.run(kill_engines(server, bodies, arguments.kills, seed=1))
    for name, seconds in (("no engine ready for", report.absence_seconds), ("longest pause", report.pause_seconds)):
        print(f"{name}: median {statistics.median(seconds):.2f} s, most {max(seconds):.2f} s")
    print(f"{len(report.absence_seconds)} kills, {report.num_answers} answers, {report.num_wrong} wrong")


if __name__ == "__main__":
    main()
