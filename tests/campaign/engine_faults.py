"""The engine process killed and stopped at random times under load: streams pause and continue."""

import asyncio
import itertools
import os
import random
import re
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import httpx

from tests.campaign.streams import Choice, client_of, mixed_bodies, stream_of
from tests.support.running_server import RunningServer

NUM_STREAMS = 32
MAX_PAUSE_SECONDS = 2.0  # between an engine's readiness, or its first tokens, and the next fault
EARLY = 3  # each so manieth fault comes whether or not the engine has got anywhere: five of them in a row are given up
RECOVERY_SECONDS = 1200.0  # an engine with ranks takes minutes to start on cores that other programs use


class AnswerReport(Protocol):
    """What a report counts of answers."""

    num_answers: int
    wrong: list[str]


@dataclass
class FaultReport:
    """What came of it."""

    num_kills: int = 0
    num_stops: int = 0
    num_answers: int = 0  # complete ones, of requests that ran while there were faults
    wrong: list[str] = field(default_factory=list)  # lost, refused, cut or changed
    detection_seconds: list[float] = field(default_factory=list)  # from the fault to /readyz saying so
    recovery_seconds: list[float] = field(default_factory=list)  # from the fault to /readyz being well again
    num_harmed: dict[int, int] = field(default_factory=dict)  # by place among the victims


Victims = Callable[[RunningServer], list[int]]  # the processes of which one is harmed


def the_engine(server: RunningServer) -> list[int]:
    """Return the engine alone."""
    return [server.engine_pid()]


def any_rank(server: RunningServer) -> list[int]:
    """Return the engine and the other ranks of its model."""
    return server.rank_pids()


async def fault_campaign(
    server: RunningServer,
    *,
    num_kills: int,
    num_stops: int,
    seed: int,
    bodies: list[dict[str, Any]] | None = None,
    victims: Victims = the_engine,
) -> FaultReport:
    """Kill and stop the engine, in random order, under a constant number of mixed streams, one for each body."""
    report = FaultReport()
    if bodies is None:
        bodies = mixed_bodies(NUM_STREAMS)
    async with client_of(server.url) as http:
        undisturbed = await asyncio.gather(*(stream_of(http, body) for body in bodies))
        stopping = asyncio.Event()
        next_body = itertools.cycle(range(len(bodies)))

        async def keep_asking() -> None:
            while not stopping.is_set():
                index = next(next_body)
                await ask(http, bodies[index], undisturbed[index], report)

        contexts = [asyncio.create_task(keep_asking()) for _ in bodies]
        dice = random.Random(seed)
        faults = [signal.SIGKILL] * num_kills + [signal.SIGSTOP] * num_stops
        dice.shuffle(faults)
        for index, fault in enumerate(faults):
            if index % EARLY:
                await _until_tokens_come(http, len(bodies))
            await asyncio.sleep(dice.uniform(0, MAX_PAUSE_SECONDS))
            pids = victims(server)
            place = dice.randrange(len(pids)) if len(pids) > 1 else 0
            report.num_harmed[place] = report.num_harmed.get(place, 0) + 1
            await _harm(server, http, pids[place], fault, report)
        stopping.set()
        await asyncio.gather(*contexts)
    return report


async def ask(http: httpx.AsyncClient, body: dict[str, Any], expected: list[Choice], report: AnswerReport) -> None:
    """Ask once, and report whether the answer is the expected one."""
    try:
        answer = await stream_of(http, body)
    except (AssertionError, httpx.HTTPError) as error:
        report.wrong.append(f"{body['prompt'][:40]!r}: {error!r}"[:500])
        return
    report.num_answers += 1
    if answer != expected:
        report.wrong.append(f"{body['prompt'][:40]!r}: {answer} instead of {expected}"[:500])


async def _harm(
    server: RunningServer, http: httpx.AsyncClient, pid: int, fault: signal.Signals, report: FaultReport
) -> None:
    engine_pid = server.engine_pid()
    began = time.monotonic()
    os.kill(pid, fault)
    report.num_kills += fault == signal.SIGKILL
    report.num_stops += fault == signal.SIGSTOP
    await _until_ready_says(http, 503)
    report.detection_seconds.append(time.monotonic() - began)
    await _until_ready_says(http, 200)
    report.recovery_seconds.append(time.monotonic() - began)
    assert server.engine_pid() != engine_pid


async def _until_tokens_come(http: httpx.AsyncClient, num_streams: int) -> None:
    """Wait until all streams could have got a token: on a slow machine an engine has much to read again first."""
    before = await _num_tokens(http)
    async with asyncio.timeout(RECOVERY_SECONDS):
        while await _num_tokens(http) < before + 2 * num_streams:
            await asyncio.sleep(0.05)


async def _num_tokens(http: httpx.AsyncClient) -> float:
    found = re.search(r"^caravan_generation_tokens_total\{.*\} (\S+)$", (await http.get("/metrics")).text, re.MULTILINE)
    assert found
    return float(found[1])


async def _until_ready_says(http: httpx.AsyncClient, status: int) -> None:
    async with asyncio.timeout(RECOVERY_SECONDS):
        while (await http.get("/readyz")).status_code != status:
            await asyncio.sleep(0.005)
