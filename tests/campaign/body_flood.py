"""Many concurrent large bodies: their memory, and the latency of health checks meanwhile."""

import asyncio
import http.client
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from statistics import quantiles

from tests.campaign.health_probe import health_probe
from tests.support.running_server import RunningServer

NUM_BODIES = 12
BODY_BYTES = 8 * 2**20
JSON = {"content-type": "application/json"}


@dataclass
class BodyFlood:
    """What came of some rounds of one kind of body."""

    kind: str
    statuses: Counter[int]
    live_p99_seconds: float
    live_max_seconds: float
    grown_bytes: int  # of the API process, from before the flood to its peak


def large_bodies() -> dict[str, bytes]:
    """Return a completion of about BODY_BYTES of each kind: where its bytes are and what they are made of."""
    items = {"lists": b"[],", "numbers": b"300,", "strings": b'"ab",'}
    values = {
        kind: b"[" + item * (BODY_BYTES // len(item) - 100) + item.strip(b",") + b"]" for kind, item in items.items()
    }
    values["text"] = b'"' + b"a text " * (BODY_BYTES // 7 - 100) + b'"'
    rest = b'{"model": "tiny", "max_tokens": 4, "prompt": '
    in_prompt = {f"{kind} in `prompt`": rest + value + b"}" for kind, value in values.items()}
    return {f"{kind} in `user`": rest + b'"hi", "user": ' + value + b"}" for kind, value in values.items()} | in_prompt


async def flood(server: RunningServer, kind: str, body: bytes, num_rounds: int) -> BodyFlood:
    """Send NUM_BODIES bodies at once, some times."""
    port = int(server.url.rpartition(":")[2])
    before = memory_bytes(server, "VmRSS")
    statuses: Counter[int] = Counter()
    with health_probe(port) as live_seconds:
        for _ in range(num_rounds):
            statuses += Counter(
                await asyncio.gather(*(asyncio.to_thread(_post, port, body) for _ in range(NUM_BODIES)))
            )
    return BodyFlood(
        kind=kind,
        statuses=statuses,
        live_p99_seconds=quantiles(live_seconds, n=100)[98],
        live_max_seconds=max(live_seconds),
        grown_bytes=memory_bytes(server, "VmHWM") - before,
    )


def _post(port: int, body: bytes) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        connection.request("POST", "/v1/completions", body, JSON)
        response = connection.getresponse()
        response.read()
        return response.status
    finally:
        connection.close()


def memory_bytes(server: RunningServer, name: str) -> int:
    """Return a line of the process's status: VmRSS is what it has in memory, VmHWM the most it has had."""
    lines = Path(f"/proc/{server.process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))
