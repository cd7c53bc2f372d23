"""More requests than the server can handle: throughput, and the rejections of the others."""

import asyncio
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from statistics import quantiles
from typing import Any

import httpx

from tests.campaign.streams import client_of
from tests.support.running_server import RunningServer

MAX_WAIT_SECONDS = 3.0
MAX_QUEUED = 64
OPTIONS = ["--max-wait", f"{MAX_WAIT_SECONDS}", "--max-queued-requests", f"{MAX_QUEUED}", "--max-num-seqs", "32"]
NUM_SATURATING = 48  # requests at once that keep the engine busy
NUM_TOKENS = 96


@dataclass
class Level:
    """What came of one rate of arrivals."""

    times_capacity: float
    rate: float  # requests a second
    seconds: float  # from the first arrival to the last answer
    num_sent: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    refusal_seconds: list[float] = field(default_factory=list)
    answer_seconds: list[float] = field(default_factory=list)
    max_waiting: int = 0
    recovery_seconds: float = 0.0  # from the end of the load to an answer as quick as without load

    @property
    def goodput(self) -> float:
        """Answers a second."""
        return self.statuses[200] / self.seconds

    @property
    def refusal_p99_seconds(self) -> float:
        """What 99 of 100 refusals took at most."""
        return quantiles(self.refusal_seconds, n=100)[98] if len(self.refusal_seconds) > 1 else 0.0


async def capacity(server: RunningServer, seconds: float) -> float:
    """Return how many requests a second the server answers when there are always enough of them.

    It takes the given seconds, or more, until as many have been answered as are there at once.
    """
    began = time.monotonic()
    num_answers = 0
    numbers = iter(range(10**9))
    async with client_of(server.url) as http:

        async def keep_asking() -> None:
            nonlocal num_answers
            while True:
                status, _ = await ask(http, f"capacity {seconds} {next(numbers)}")
                num_answers += status == 200

        asking = [asyncio.create_task(keep_asking()) for _ in range(NUM_SATURATING)]
        while time.monotonic() < began + seconds or num_answers < NUM_SATURATING:
            await asyncio.sleep(0.1)
        took_seconds = time.monotonic() - began
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
    return num_answers / took_seconds


async def overloaded(server: RunningServer, times_capacity: float, rate: float, seconds: float, seed: int) -> Level:
    """Return what comes of Poisson arrivals at `rate` for the given seconds."""
    level = Level(times_capacity, rate, seconds)
    dice = random.Random(seed)
    async with client_of(server.url) as http:
        alone = await _probe_seconds(http, "before")

        async def one(number: int) -> None:
            status, took_seconds = await ask(http, f"load {seed} {number}")
            level.statuses[status] += 1
            (level.answer_seconds if status == 200 else level.refusal_seconds).append(took_seconds)

        began = time.monotonic()
        watching = asyncio.create_task(_watch_queue(http, level))
        asking: list[asyncio.Task[None]] = []
        due = began
        while due < began + seconds:
            due += dice.expovariate(rate)
            await asyncio.sleep(max(due - time.monotonic(), 0))
            asking.append(asyncio.create_task(one(len(asking))))
        level.num_sent = len(asking)
        load_ended = time.monotonic()
        while await _probe_seconds(http, f"after {time.monotonic()}") > 2 * alone + 0.1:
            pass
        level.recovery_seconds = time.monotonic() - load_ended
        await asyncio.gather(*asking)
        level.seconds = max(seconds, time.monotonic() - began - level.recovery_seconds)
        watching.cancel()
    return level


async def ask(http: httpx.AsyncClient, text: str, num_tokens: int = NUM_TOKENS) -> tuple[int, float]:
    """Return the status of a request and how long it took."""
    prompt = f"{text}: " + " ".join(str(number) for number in range(24))
    body: dict[str, Any] = {"model": "smollm2", "prompt": prompt, "max_tokens": num_tokens, "ignore_eos": True}
    began = time.monotonic()
    response = await http.post("/v1/completions", json=body)
    if response.status_code == 429:
        assert 1 <= int(response.headers["retry-after"]) <= 120
    return response.status_code, time.monotonic() - began


async def _probe_seconds(http: httpx.AsyncClient, text: str) -> float:
    """Return how long a small request takes, again and again until it is let in."""
    while True:
        status, seconds = await ask(http, text, num_tokens=4)
        if status == 200:
            return seconds
        await asyncio.sleep(0.1)


async def _watch_queue(http: httpx.AsyncClient, level: Level) -> None:
    while True:
        text = (await http.get("/metrics")).text
        for line in text.splitlines():
            if line.startswith("caravan_num_requests_waiting{"):
                level.max_waiting = max(level.max_waiting, int(float(line.rpartition(" ")[2])))
        await asyncio.sleep(0.25)
