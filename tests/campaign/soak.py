"""Many requests, and the memory of the server meanwhile."""

import asyncio
import itertools
import math
from dataclasses import dataclass
from pathlib import Path
from statistics import linear_regression

import httpx

from tests.support.running_server import RunningServer

NUM_AT_ONCE = 16
WARM_SHARE = 0.5  # of the requests, before memory is looked at: pools and caches fill first


@dataclass(frozen=True)
class Slope:
    """How memory grows with requests: a line through samples, with a 95 % confidence interval for its slope."""

    bytes_per_request: float
    half_width: float

    @property
    def is_flat(self) -> bool:
        """Memory does not grow, or by less than 1 KB a request."""
        return abs(self.bytes_per_request) - self.half_width <= 0 or self.bytes_per_request < 1000


async def soak(server: RunningServer, *, num_requests: int) -> dict[str, Slope]:
    """Return the slope of the memory of each process of the server over the requests."""
    pids = {"API process": server.process.pid, "engine process": server.engine_pid()}
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in pids}
    numbers = itertools.count()
    every = max(num_requests // 200, 1)
    async with httpx.AsyncClient(base_url=server.url, timeout=60, trust_env=False) as http:

        async def keep_asking() -> None:
            while (number := next(numbers)) < num_requests:
                await _ask(http, number)
                if number % every == 0 and number > WARM_SHARE * num_requests:
                    for name, pid in pids.items():
                        samples[name].append((number, resident_bytes(pid)))

        await asyncio.gather(*(keep_asking() for _ in range(NUM_AT_ONCE)))
    return {name: slope_of(of_process) for name, of_process in samples.items()}


def slope_of(samples: list[tuple[float, float]]) -> Slope:
    """Return the line through samples of (requests, bytes).

    Samples that follow each other are alike, so fewer count than there are: the interval is widened by their
    correlation (Bayley and Hammersley, 1946, for a process of first order).
    """
    xs, ys = [x for x, _ in samples], [y for _, y in samples]
    slope, intercept = linear_regression(xs, ys)
    rests = [y - slope * x - intercept for x, y in samples]
    power = math.fsum(rest * rest for rest in rests) or 1e-9
    likeness = math.fsum(a * b for a, b in itertools.pairwise(rests)) / power
    likeness = min(max(likeness, 0.0), 0.99)
    num = max(len(samples) * (1 - likeness) / (1 + likeness), 3.0)
    mean = math.fsum(xs) / len(xs)
    spread = math.fsum((x - mean) ** 2 for x in xs) / len(xs)
    return Slope(slope, 1.96 * math.sqrt(power / len(samples) / (num - 2) / spread))


def resident_bytes(pid: int) -> int:
    """Return the memory of a process that is not shared with files."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))


async def _ask(http: httpx.AsyncClient, number: int) -> None:
    body = {"model": "tiny", "prompt": f"{number} says", "max_tokens": 1 + number % 17, "ignore_eos": True}
    body |= {"stream": number % 3 == 0, "logprobs": 2 if number % 5 == 0 else None, "n": 1 + number % 2}
    if number % 7 == 0:
        body |= {"response_format": {"type": "json_object"}, "max_tokens": 20}
    if number % 11 == 0:
        body |= {"temperature": 9}  # refused
    response = await http.post("/v1/completions", json=body)
    assert response.status_code == (400 if number % 11 == 0 else 200), response.text
