"""Requests of one key that are slow to check or to tokenize: their effect on other keys and running streams."""

import asyncio
import contextlib
import itertools
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from tests.support.running_server import RunningServer

KEYS = {"flood": "the-key-of-the-flood", "other": "the-key-of-another"}


@dataclass
class Notice:
    """What others noticed, in seconds."""

    live: list[float] = field(default_factory=list)  # answers of /livez
    two_tokens: list[float] = field(default_factory=list)  # another key's requests for two tokens with a new grammar
    pauses: list[float] = field(default_factory=list)  # between the tokens of another key's stream
    num_not_ready: int = 0  # answers of /readyz that are not 200
    statuses: Counter[int] = field(default_factory=Counter)  # of the flood

    def __str__(self) -> str:
        measured = {"live": self.live, "two tokens": self.two_tokens, "pauses": self.pauses}
        texts = [
            f"{name}: {len(seconds)}, p50 {percentile(seconds, 50):.3f}, p99 {percentile(seconds, 99):.3f}, "
            f"max {max(seconds):.3f}"
            for name, seconds in measured.items()
        ]
        return "; ".join([*texts, f"not ready: {self.num_not_ready}", f"flood: {dict(self.statuses)}"])


def percentile(seconds: list[float], percent: float) -> float:
    """Return a percentile."""
    return sorted(seconds)[min(int(len(seconds) * percent / 100), len(seconds) - 1)]


def write_keys(path: Path) -> Path:
    """Write the file of keys for the server, and return its path."""
    path.write_text("".join(f"{name}: {key}\n" for name, key in KEYS.items()))
    return path


async def noticed(server: RunningServer, flood: str, *, num_clients: int, seconds: float) -> Notice:
    """Return what others notice of a flood (see flood_client) from several clients of one key."""
    notice = Notice()
    numbers = itertools.count(time.monotonic_ns())
    has_ended = asyncio.Event()
    headers = {"authorization": f"Bearer {KEYS['other']}"}
    async with (
        httpx.AsyncClient(base_url=server.url, headers=headers, timeout=120, trust_env=False) as http,
        _flooding(server, flood, num_clients, notice),
    ):

        async def ask_for_health() -> None:
            while not has_ended.is_set():
                began = time.monotonic()
                assert (await http.get("/livez")).status_code == 200
                notice.live.append(time.monotonic() - began)
                notice.num_not_ready += (await http.get("/readyz")).status_code != 200
                await asyncio.sleep(0.01)

        async def ask_for_two_tokens() -> None:
            while not has_ended.is_set():
                body = {"model": "smollm2", "prompt": f"{next(numbers)} and", "max_tokens": 2, "ignore_eos": True}
                began = time.monotonic()
                response = await http.post("/v1/completions", json=body | {"regex": f"(x{next(numbers)})?[a-z ]*"})
                assert response.status_code == 200, response.text
                notice.two_tokens.append(time.monotonic() - began)
                await asyncio.sleep(0.05)

        async def read_streams() -> None:
            while not has_ended.is_set():
                times: list[float] = []
                body = {"model": "smollm2", "prompt": f"{next(numbers)} Once", "max_tokens": 1000, "ignore_eos": True}
                async with http.stream("POST", "/v1/completions", json=body | {"stream": True}) as response:
                    assert response.status_code == 200
                    async for line in response.aiter_lines():
                        if line.startswith("data: {"):
                            times.append(time.monotonic())
                        if has_ended.is_set() and len(times) > 1:
                            break
                notice.pauses += [late - early for early, late in itertools.pairwise(times)]

        watching = [asyncio.create_task(one()) for one in (ask_for_health, ask_for_two_tokens, read_streams)]
        await asyncio.sleep(seconds)
        has_ended.set()
        await asyncio.gather(*watching)
    return notice


@contextlib.asynccontextmanager
async def _flooding(server: RunningServer, flood: str, num_clients: int, notice: Notice) -> AsyncIterator[None]:
    arguments = ("-m", "tests.campaign.flood_client", server.url, KEYS["flood"], flood, str(num_clients))
    process = await asyncio.create_subprocess_exec(sys.executable, *arguments, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    assert await process.stdout.readline() == b"ready\n"
    try:
        yield
        assert process.returncode is None, "the flood has ended by itself"
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        written, _ = await process.communicate()
        notice.statuses.update(map(int, written.split()))
