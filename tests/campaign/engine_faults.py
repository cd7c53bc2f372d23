"""The engine process killed and stopped at random times under load: streams pause and continue."""

import asyncio
import itertools
import os
import random
import re
import signal
import time
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.campaign.streams import Choice, Refused, client_of, mixed_bodies, stream_of
from tests.support.running_server import RunningServer

NUM_STREAMS = 32
MAX_PAUSE_SECONDS = 2.0  # between an engine's readiness, or its first tokens, and the next fault
EARLY = 3  # each so manieth fault comes whether or not the engine has got anywhere: five of them in a row are given up
RECOVERY_SECONDS = 60.0


@dataclass
class FaultReport:
    """What came of it."""

    num_kills: int = 0
    num_stops: int = 0
    num_answers: int = 0  # complete ones, of requests that ran while there were faults
    num_refused: int = 0  # rejected with 503 while there was no engine
    wrong: list[str] = field(default_factory=list)  # lost, cut or changed
    detection_seconds: list[float] = field(default_factory=list)  # from the fault to /readyz saying so
    recovery_seconds: list[float] = field(default_factory=list)  # from the fault to /readyz being well again


async def fault_campaign(server: RunningServer, *, num_kills: int, num_stops: int, seed: int) -> FaultReport:
    """Kill and stop the engine, in random order, under a constant number of mixed streams."""
    report = FaultReport()
    bodies = mixed_bodies(NUM_STREAMS)
    async with client_of(server.url) as http:
        undisturbed = await asyncio.gather(*(stream_of(http, body) for body in bodies))
        stopping = asyncio.Event()
        next_body = itertools.cycle(range(len(bodies)))

        async def keep_asking() -> None:
            while not stopping.is_set():
                index = next(next_body)
                await _ask(http, bodies[index], undisturbed[index], report)

        contexts = [asyncio.create_task(keep_asking()) for _ in range(NUM_STREAMS)]
        dice = random.Random(seed)
        faults = [signal.SIGKILL] * num_kills + [signal.SIGSTOP] * num_stops
        dice.shuffle(faults)
        for index, fault in enumerate(faults):
            if index % EARLY:
                await _until_tokens_come(http)
            await asyncio.sleep(dice.uniform(0, MAX_PAUSE_SECONDS))
            await _harm(server, http, fault, report)
        stopping.set()
        await asyncio.gather(*contexts)
    return report


async def _ask(http: httpx.AsyncClient, body: dict[str, Any], expected: list[Choice], report: FaultReport) -> None:
    try:
        answer = await stream_of(http, body)
    except Refused:
        report.num_refused += 1
        await asyncio.sleep(0.2)
        return
    except (AssertionError, httpx.HTTPError) as error:
        report.wrong.append(f"{body['prompt'][:40]!r}: {error!r}"[:500])
        return
    report.num_answers += 1
    if answer != expected:
        report.wrong.append(f"{body['prompt'][:40]!r}: {answer} instead of {expected}"[:500])


async def _harm(server: RunningServer, http: httpx.AsyncClient, fault: signal.Signals, report: FaultReport) -> None:
    pid = server.engine_pid()
    began = time.monotonic()
    os.kill(pid, fault)
    report.num_kills += fault == signal.SIGKILL
    report.num_stops += fault == signal.SIGSTOP
    await _until_ready_says(http, 503)
    report.detection_seconds.append(time.monotonic() - began)
    await _until_ready_says(http, 200)
    report.recovery_seconds.append(time.monotonic() - began)
    assert server.engine_pid() != pid


async def _until_tokens_come(http: httpx.AsyncClient) -> None:
    """Wait until all streams could have got a token: on a slow machine an engine has much to read again first."""
    before = await _num_tokens(http)
    async with asyncio.timeout(RECOVERY_SECONDS):
        while await _num_tokens(http) < before + 2 * NUM_STREAMS:
            await asyncio.sleep(0.05)


async def _num_tokens(http: httpx.AsyncClient) -> float:
    found = re.search(r"^caravan_generation_tokens_total\{.*\} (\S+)$", (await http.get("/metrics")).text, re.MULTILINE)
    assert found
    return float(found[1])


async def _until_ready_says(http: httpx.AsyncClient, status: int) -> None:
    async with asyncio.timeout(RECOVERY_SECONDS):
        while (await http.get("/readyz")).status_code != status:
            await asyncio.sleep(0.02)
