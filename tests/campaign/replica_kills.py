"""Replicas on Ray Serve, killed at random times under load: streams go on elsewhere."""

import asyncio
import itertools
import os
import random
import signal
import time
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.campaign.engine_faults import ask
from tests.campaign.streams import client_of, mixed_bodies, stream_of
from tests.support.ray_replicas import actor_pids, engine_pids, replica_pids
from tests.support.running_server import RunningServer

NUM_STREAMS = 16
MAX_PAUSE_SECONDS = 2.0  # between two replicas at work and the next kill
RECOVERY_SECONDS = 240.0
KINDS = (engine_pids, actor_pids, replica_pids)


@dataclass
class ReplicaReport:
    """What came of it."""

    num_engine_kills: int = 0
    num_actor_kills: int = 0  # of the process that owns the engine, which ends with it
    num_replica_kills: int = 0  # of Serve's own process, with which both end
    num_answers: int = 0
    wrong: list[str] = field(default_factory=list)  # lost, refused, cut or changed
    undisturbed_gap_seconds: float = 0.0  # longest pause between two events of a stream, without kills
    gap_seconds: list[float] = field(default_factory=list)  # longest pause of each stream during which there was a kill
    recovery_seconds: list[float] = field(default_factory=list)  # from a kill until all replicas are connected again


class Gaps(httpx.AsyncBaseTransport):
    """Measures the longest pause between two pieces of the body of each response, and whether a kill was in it."""

    def __init__(self, limits: httpx.Limits) -> None:
        self.longest: list[float] = []
        self._inner = httpx.AsyncHTTPTransport(limits=limits)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        response = await self._inner.handle_async_request(request)
        if request.method == "POST":
            assert isinstance(response.stream, httpx.AsyncByteStream)
            response.stream = _Timed(response.stream, self.longest)
        return response


class _Timed(httpx.AsyncByteStream):
    def __init__(self, inner: httpx.AsyncByteStream, longest: list[float]) -> None:
        self._inner = inner
        self._longest = longest

    async def __aiter__(self) -> Any:
        longest, last = 0.0, 0.0
        async for piece in self._inner:
            now = time.monotonic()
            longest, last = max(longest, now - last if last else 0.0), now
            yield piece
        self._longest.append(longest)

    async def aclose(self) -> None:
        await self._inner.aclose()


async def replica_campaign(server: RunningServer, *, num_kills: int, num_replicas: int, seed: int) -> ReplicaReport:
    """Kill engines, their actors and Serve's replicas in turn, under a constant number of mixed streams."""
    report = ReplicaReport()
    bodies = mixed_bodies(NUM_STREAMS)
    gaps = Gaps(httpx.Limits(max_connections=None, max_keepalive_connections=64))
    async with (
        httpx.AsyncClient(base_url=server.url, timeout=300, transport=gaps) as http,
        client_of(server.url) as asking,
    ):
        undisturbed = await asyncio.gather(*(stream_of(http, body) for body in bodies))
        report.undisturbed_gap_seconds = max(gaps.longest)
        gaps.longest.clear()
        stopping = asyncio.Event()
        next_body = itertools.cycle(range(len(bodies)))

        async def keep_asking() -> None:
            while not stopping.is_set():
                index = next(next_body)
                await ask(http, bodies[index], undisturbed[index], report)

        streams = [asyncio.create_task(keep_asking()) for _ in range(NUM_STREAMS)]
        dice = random.Random(seed)
        for number in range(num_kills):
            await asyncio.sleep(dice.uniform(0.5, MAX_PAUSE_SECONDS))
            kind = number % len(KINDS)
            began = time.monotonic()
            os.kill(dice.choice(KINDS[kind]()), signal.SIGKILL)
            report.num_engine_kills += kind == 0
            report.num_actor_kills += kind == 1
            report.num_replica_kills += kind == 2
            await _until_connected(asking, lambda num: num < num_replicas, began)
            await _until_connected(asking, lambda num: num == num_replicas, began)
            report.recovery_seconds.append(time.monotonic() - began)
            print(
                f"  {KINDS[kind].__name__}: {len(report.wrong)} of {report.num_answers} wrong, "
                f"longest pause {max(gaps.longest, default=0.0):.2f} s",
                flush=True,
            )
        stopping.set()
        await asyncio.gather(*streams)
        report.gap_seconds = gaps.longest
    return report


async def _until_connected(http: httpx.AsyncClient, holds: Any, began: float) -> None:
    """Wait until the number of connected replicas is as it should be."""
    while True:
        text = (await http.get("/metrics")).text
        line = next(one for one in text.splitlines() if one.startswith("caravan_replicas_connected{"))
        if holds(float(line.rpartition(" ")[2])):
            return
        assert time.monotonic() - began < RECOVERY_SECONDS, "the replica does not come back"
        await asyncio.sleep(0.02)
