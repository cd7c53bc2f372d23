"""Measure what a spill file saves: `python -m benchmarks.spill [FILE]`, where FILE is a model; the default one without.

First a prompt is asked for again after a restart, with the file and without it. Then engines are killed among streams,
again and again: how many tokens the next engines compute again, with the file and without it. Every answer must be the
one of a run without kills, to the last bit of its log-probabilities.
"""

import argparse
import asyncio
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from typing_extensions import override

from caravan.download.resolve import DEFAULT_MODEL, resolve_model
from caravan.model.sampling.sampling_params import SamplingParams
from caravan.scheduler.config import EngineLimits
from caravan.scheduler.messages import Request, SequenceOutput, StartEngine, StepOutput
from caravan.server.engine.client import EngineClient
from caravan.server.engine.listener import EngineListener
from caravan.server.engine.process import STANDBY_PROGRAM

VOCABULARY = 1000  # token ids are drawn below it
FILE_BYTES = 4 * 2**30
WRITING_SECONDS = 2.0  # for the thread to write the last blocks, before an engine is stopped
Tokens = list[tuple[int, float]]  # ids and log-probabilities


@dataclass
class KillReport:
    """What came of the kills."""

    num_kills: int = 0
    num_answers: int = 0
    num_wrong: int = 0  # cut or changed
    num_replayed: int = 0  # sequences
    num_replayed_tokens: int = 0  # that they had
    num_recomputed_tokens: int = 0  # of those, not found in the cache or in the file
    seconds: list[float] = field(default_factory=list)  # from a kill until every stream is in a batch again

    def summary(self) -> dict[str, Any]:
        """Return the counts, and the median and the longest time."""
        times = {"median_seconds": statistics.median(self.seconds), "max_seconds": max(self.seconds)}
        return {name: value for name, value in vars(self).items() if name != "seconds"} | times


class Replays(EngineListener):
    """Counts the tokens that sequences have, and those they still find, when a new engine takes them over."""

    def __init__(self, report: KillReport) -> None:
        self.report = report
        self.num_tokens: dict[int, int] = {}  # of each request that runs: its prompt and what it has got
        self.waiting: set[int] = set()  # requests that the new engine has not continued yet
        self.num_got = 0  # tokens of all streams
        self.num_restarts = 0

    @override
    def on_step(self, output: StepOutput) -> None:
        for event in output.events:
            if event.kind == "join" and event.request_id in self.waiting:
                self.waiting.discard(event.request_id)
                self.report.num_replayed += 1
                self.report.num_replayed_tokens += self.num_tokens[event.request_id]
                self.report.num_recomputed_tokens += self.num_tokens[event.request_id] - event.num_tokens
        for one in output.outputs:
            if one.request_id in self.num_tokens:
                self.num_tokens[one.request_id] += len(one.token_ids)
                self.num_got += len(one.token_ids)

    @override
    def on_replay(self, num_requests: int, down_seconds: float) -> None:
        self.num_restarts += 1
        self.waiting = set(self.num_tokens)


@asynccontextmanager
async def running_engine(start: StartEngine, *, has_standby: bool = False) -> AsyncIterator[EngineClient]:
    """Yield a client of an engine that has answered once; stop it in the end."""
    client = EngineClient(start, standby_program=STANDBY_PROGRAM if has_standby else None)
    try:
        await client.ready()
        await answer_to(client, prompt_request(0, 20, 2))
        yield client
    finally:
        await client.stop()


def prompt_request(seed: int, num_prompt_tokens: int, max_tokens: int) -> Request:
    """Return a sampled request with random tokens."""
    dice = random.Random(seed)
    params = SamplingParams(max_tokens=max_tokens, seed=seed, temperature=0.8, num_logprobs=0)
    prompt = [dice.randrange(VOCABULARY) for _ in range(num_prompt_tokens)]
    return Request(prompt_token_ids=prompt, params=params, cache_salt=str(seed))


async def answer_to(client: EngineClient, request: Request, replays: Replays | None = None) -> tuple[Tokens, float]:
    """Return the tokens of an answer, and the seconds until the first one."""
    began, first_seconds, tokens = time.monotonic(), 0.0, []
    outputs = client.submit(request)
    if replays is not None:
        replays.num_tokens[outputs.request_id] = len(request.prompt_token_ids)
    has_output = asyncio.Event()
    outputs.on_output = has_output.set
    output: SequenceOutput | None = None
    try:
        while output is None or output.finish_reason is None:
            await has_output.wait()
            has_output.clear()
            while (output := outputs.take()) is not None:
                first_seconds = first_seconds or outputs.received_at_seconds - began
                logprobs = [entry.logprob for entry in output.logprobs]
                tokens += [*zip(output.token_ids, logprobs, strict=True)]
                if output.finish_reason is not None:
                    break
    finally:
        if replays is not None:
            del replays.num_tokens[outputs.request_id]
            replays.waiting.discard(outputs.request_id)
    return tokens, first_seconds


async def measure_restarts(
    start: StartEngine, spilled: StartEngine, num_tokens: int, num_rounds: int
) -> dict[str, list[float]]:
    """Return the seconds until a prompt's first token in a new engine, with the file and without it."""
    seconds: dict[str, list[float]] = {"with": [], "without": []}
    for number in range(num_rounds):
        request = prompt_request(100 + number, num_tokens, 16)
        async with running_engine(spilled) as client:
            expected, _ = await answer_to(client, request)
            await asyncio.sleep(WRITING_SECONDS)
        for name, options in (("with", spilled), ("without", start)):
            async with running_engine(options) as client:
                tokens, first_seconds = await answer_to(client, request)
            assert tokens == expected, "the bits are equal"
            seconds[name].append(first_seconds)
    return seconds


async def kill_engines(start: StartEngine, bodies: list[Request], num_kills: int, seed: int) -> KillReport:
    """Kill engines at random moments, each after every stream could have got some tokens."""
    report, dice, stopping = KillReport(), random.Random(seed), asyncio.Event()
    replays = Replays(report)
    async with running_engine(start, has_standby=True) as client:
        client.listener = replays
        expected = [tokens for tokens, _ in await asyncio.gather(*(answer_to(client, body) for body in bodies))]

        async def keep_asking(index: int) -> None:
            number = 0
            while not stopping.is_set():
                number += 1  # a salt of its own: nothing is found of the answer before
                request = msgspec.structs.replace(bodies[index], cache_salt=f"{index}, {number}")
                tokens, _ = await answer_to(client, request, replays)
                report.num_answers += 1
                report.num_wrong += tokens != expected[index]

        streams = [asyncio.create_task(keep_asking(index)) for index in range(len(bodies))]
        for _ in range(num_kills):
            before = replays.num_got
            while replays.num_got < before + 4 * len(bodies) or replays.waiting or not client.is_standby_ready():
                await asyncio.sleep(0.02)
            await asyncio.sleep(dice.uniform(0, 1))
            restarts, began = replays.num_restarts, time.monotonic()
            os.kill(client.engine_pid, signal.SIGKILL)
            report.num_kills += 1
            while replays.num_restarts == restarts or replays.waiting:
                await asyncio.sleep(0.005)
            report.seconds.append(time.monotonic() - began)
        stopping.set()
        await asyncio.gather(*streams)
    return report


async def measure(
    model: Path,
    *,
    num_rounds: int = 3,
    num_prompt_tokens: int = 1000,
    num_kills: int = 50,
    num_streams: int = 32,
    num_tokens: int = 256,
) -> dict[str, Any]:
    """Return both measurements; streams have num_tokens tokens of prompt, and as many of output."""
    start = StartEngine(model_path=str(model), limits=EngineLimits(kv_cache_memory_bytes=2**30, max_model_len=2048))
    result: dict[str, Any] = {"num_prompt_tokens": num_prompt_tokens, "num_streams": num_streams}
    with tempfile.TemporaryDirectory(prefix="caravan-spill-") as folder:
        path = str(Path(folder) / "kv.blocks")
        spilled = msgspec.structs.replace(start, kv_spill_bytes=FILE_BYTES, kv_spill_path=path)
        result["restarts"] = await measure_restarts(start, spilled, num_prompt_tokens, num_rounds)
        bodies = [prompt_request(index, num_tokens, num_tokens) for index in range(num_streams)]
        for name, options in (("with", spilled), ("without", start)):
            result[name] = (await kill_engines(options, bodies, num_kills, seed=1)).summary()
            print(f"{name} the file: {result[name]}", file=sys.stderr, flush=True)
    return result


def main() -> None:
    """Print both measurements."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path, nargs="?")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompt", type=int, default=1000, help="tokens of the prompt after a restart")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=256, help="of each answer, and of each prompt of a stream")
    arguments = parser.parse_args()
    result = asyncio.run(
        measure(
            arguments.file or resolve_model(DEFAULT_MODEL, lambda text: print(text, file=sys.stderr)),
            num_rounds=arguments.rounds,
            num_prompt_tokens=arguments.prompt,
            num_kills=arguments.kills,
            num_streams=arguments.streams,
            num_tokens=arguments.tokens,
        )
    )
    for name, seconds in result["restarts"].items():
        shown = ", ".join(f"{1000 * value:.0f}" for value in seconds)
        print(f"first token of {arguments.prompt} tokens after a restart, {name} the file: {shown} ms")
    for name in ("with", "without"):
        shown = ", ".join(f"{fact.replace('_', ' ')} {value:,g}" for fact, value in result[name].items())
        print(f"kills {name} the file: {shown}")


if __name__ == "__main__":
    main()
