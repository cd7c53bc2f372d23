"""A long prompt among running streams: how long the streams pause."""

import asyncio
import time
from dataclasses import dataclass
from itertools import pairwise

from tests.campaign.streams import client_of
from tests.support.running_server import RunningServer

NUM_STREAMS = 8
PROMPT_TOKENS = 4000


@dataclass(frozen=True)
class Pauses:
    """Pauses between the tokens of running streams, in seconds, in increasing order, and the long prompt's wait."""

    between_tokens: list[float]
    first_token_seconds: float

    def percentile(self, percent: float) -> float:
        """Return a percentile of the pauses."""
        return self.between_tokens[min(int(len(self.between_tokens) * percent / 100), len(self.between_tokens) - 1)]


async def pauses_beside_a_long_prompt(server: RunningServer, *, with_prompt: bool = True) -> Pauses:
    """Return the pauses of eight streams from the arrival of a prompt of 4,000 tokens to its first token."""
    times: list[list[float]] = [[] for _ in range(NUM_STREAMS)]
    seed = time.monotonic_ns()
    async with client_of(server.url) as http:

        async def stream(index: int) -> None:
            body = {"model": "smollm2", "prompt": f"{seed} {index} Once", "max_tokens": 600, "ignore_eos": True}
            body |= {"stream": True, "return_token_ids": True, "seed": index}
            async with http.stream("POST", "/v1/completions", json=body) as response:
                async for line in response.aiter_lines():
                    if line.startswith("data: {"):
                        times[index].append(time.monotonic())

        streams = [asyncio.create_task(stream(index)) for index in range(NUM_STREAMS)]
        while not all(len(of_stream) > 20 for of_stream in times):
            await asyncio.sleep(0.05)
        began = time.monotonic()
        if with_prompt:
            prompt = [(seed + 31 * number) % 40_000 + 1000 for number in range(PROMPT_TOKENS)]
            body = {"model": "smollm2", "prompt": prompt, "max_tokens": 1}
            assert (await http.post("/v1/completions", json=body)).status_code == 200
        else:
            await asyncio.sleep(2)
        ended = time.monotonic()
        for task in streams:
            task.cancel()
        await asyncio.gather(*streams, return_exceptions=True)
    pauses = [
        late - early for of_stream in times for early, late in pairwise(of_stream) if began < late and early < ended
    ]
    return Pauses(sorted(pauses), ended - began)
