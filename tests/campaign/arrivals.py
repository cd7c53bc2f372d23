"""Requests that arrive while the engine is killed, replaced or woken: none is refused, and no answer changes."""

import asyncio
import itertools
import os
import random
import re
import signal
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field

import httpx

from tests.campaign.input_floods import KEYS
from tests.campaign.streams import client_of
from tests.campaign.tiny_pool import Body, answer_of, check, requests_of_all_kinds
from tests.support.running_server import RunningServer
from tests.support.waiting import until

ARRIVALS_PER_SECOND = 4.0
MAX_UNANSWERED = 16  # at which none arrives: on a slow machine the queue would become full
NUM_KINDS = 15  # of requests; half of them are streamed
MAX_PAUSE_SECONDS = 2.0  # between answers by a new engine and the next kill
RECOVERY_SECONDS = 1200.0  # on cores that other programs use


@dataclass
class ArrivalsReport:
    """What came of it."""

    num_kills: int = 0
    num_answers: int = 0
    num_arrived_meanwhile: int = 0  # at once after a kill; others came by chance
    wrong: list[str] = field(default_factory=list)  # lost, refused, cut or changed
    unready_seconds: list[float] = field(default_factory=list)  # from the end of the process to a 503 of /readyz


class Arrivals:
    """Sends requests of two keys at random times, streamed and whole; each answer must be that of its solo run."""

    def __init__(self, clients: list[httpx.AsyncClient], requests: list[tuple[str, Body]], expected: list[str]) -> None:
        self.report = ArrivalsReport()
        self._clients = clients
        self._requests = requests
        self._expected = expected
        self._numbers = itertools.count()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def num_unanswered(self) -> int:
        """The number of requests without a whole answer."""
        return len(self._tasks)

    def arrive(self) -> None:
        """Send one more request."""
        task = asyncio.create_task(self._ask(next(self._numbers)))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def arrive_meanwhile(self) -> None:
        """Send two requests of each key: the engine was killed."""
        for _ in range(2 * len(self._clients)):
            self.arrive()
            self.report.num_arrived_meanwhile += 1

    @asynccontextmanager
    async def flowing(self, dice: random.Random) -> AsyncIterator[None]:
        """Let requests arrive as a Poisson process; wait for all answers at the end."""

        async def flow() -> None:
            while True:
                await asyncio.sleep(dice.expovariate(ARRIVALS_PER_SECOND))
                if self.num_unanswered < MAX_UNANSWERED:
                    self.arrive()

        flowing = asyncio.create_task(flow())
        try:
            yield
        finally:
            flowing.cancel()
            while self._tasks:
                await asyncio.wait(self._tasks)

    async def _ask(self, number: int) -> None:
        client = self._clients[number % len(self._clients)]
        index = number % len(self._requests)
        await check(client, *self._requests[index], self._expected[index], self.report.wrong)
        self.report.num_answers += 1


async def arrivals_campaign(
    server: RunningServer, *, num_kills: int, seed: int, has_standby: bool = False, is_sleeping: bool = False
) -> ArrivalsReport:
    """Kill the engine under arrivals; the server has the keys of `input_floods.write_keys`.

    If it `has_standby`, each second kill waits until that is ready. If the model `is_sleeping` when it has no requests,
    each second kill hits an engine that is being loaded for one.
    """
    requests = requests_of_all_kinds(NUM_KINDS)
    dice = random.Random(seed)
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(client_of(server.url)) for _ in KEYS]
        for client, key in zip(clients, KEYS.values(), strict=True):
            client.headers["authorization"] = f"Bearer {key}"
        expected = [await answer_of(clients[0], path, body) for path, body in requests]
        arrivals = Arrivals(clients, requests, expected)
        report = arrivals.report
        server.http.headers["authorization"] = clients[0].headers["authorization"]
        while report.num_kills < num_kills:
            is_second = report.num_kills % 2 == 1
            if is_sleeping and is_second:
                await until(lambda: not server.engine_pids(), within_seconds=RECOVERY_SECONDS)
            async with arrivals.flowing(dice):
                arrivals.arrive()
                if not (is_sleeping and is_second):
                    await _until_answered(arrivals)
                    await asyncio.sleep(dice.uniform(0, MAX_PAUSE_SECONDS))
                if has_standby and is_second:
                    await until(lambda: server.metric("standby_ready"), within_seconds=RECOVERY_SECONDS)
                await until(server.engine_pids, within_seconds=RECOVERY_SECONDS)  # it can have fallen asleep
                if is_sleeping:
                    _kill(server, report)
                else:
                    await _kill_at_work(server, clients[0], report)
                arrivals.arrive_meanwhile()
                await _until_answered(arrivals)
    return report


async def _kill_at_work(server: RunningServer, http: httpx.AsyncClient, report: ArrivalsReport) -> None:
    """Kill an engine that has loaded, and measure how soon the server says so."""
    num_restarts = await _num_restarts(http)
    async with asyncio.timeout(RECOVERY_SECONDS):
        ended = _end_of(server.engine_pid())
        _kill(server, report)
        ended_at_seconds = await ended
        is_replaced = False
        while (await http.get("/readyz")).status_code != 503:
            if is_replaced:
                return  # a standby has taken over in less time than it takes to ask
            is_replaced = await _num_restarts(http) > num_restarts
    report.unready_seconds.append(time.monotonic() - ended_at_seconds)


def _end_of(pid: int) -> asyncio.Future[float]:
    """Return a future with the time.monotonic() at which a process will have ended."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[float] = loop.create_future()
    process = os.pidfd_open(pid)

    def end() -> None:
        loop.remove_reader(process)
        os.close(process)
        ended.set_result(time.monotonic())

    loop.add_reader(process, end)
    return ended


async def _num_restarts(http: httpx.AsyncClient) -> float:
    found = re.search(r"^caravan_engine_restarts_total\{.*\} (\S+)$", (await http.get("/metrics")).text, re.MULTILINE)
    assert found
    return float(found[1])


def _kill(server: RunningServer, report: ArrivalsReport) -> None:
    for pid in server.engine_pids()[:1]:
        with suppress(ProcessLookupError):  # it was on its way to sleep
            os.kill(pid, signal.SIGKILL)
            report.num_kills += 1


async def _until_answered(arrivals: Arrivals) -> None:
    """Wait until as many requests are answered as are under way: five kills in a row without a token give one up."""
    num_answers = arrivals.report.num_answers + max(arrivals.num_unanswered, 1)
    await until(lambda: arrivals.report.num_answers >= num_answers, within_seconds=RECOVERY_SECONDS)
