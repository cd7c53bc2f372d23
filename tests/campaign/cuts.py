"""Clients that disconnect at any point: in the head, in the body, while they wait, and within the response."""

import asyncio
import json
import random
from dataclasses import dataclass

from tests.support.running_server import RunningServer

NUM_AT_ONCE = 32


@dataclass
class CutReport:
    """What came of it."""

    num_cuts: int = 0
    num_in_request: int = 0  # before the request was complete
    num_in_answer: int = 0  # after the first byte of the answer
    leaked_blocks: float = 0.0  # share of the pool in use when nobody is there any more
    num_running: float = 0.0  # and sequences that still run


async def cut_campaign(server: RunningServer, *, num_cuts: int, seed: int) -> CutReport:
    """Cut the given number of requests, and return what is left of them."""
    report = CutReport()
    dice = random.Random(seed)
    host, _, port = server.url.removeprefix("http://").rpartition(":")
    numbers = iter(range(num_cuts))

    async def keep_cutting() -> None:
        for number in numbers:
            await _cut(host, int(port), dice, number, report)

    await asyncio.gather(*(keep_cutting() for _ in range(NUM_AT_ONCE)))
    for _ in range(100):
        await asyncio.sleep(0.1)
        report.leaked_blocks, report.num_running = (
            server.metric("kv_cache_usage_perc"),
            server.metric("num_requests_running") + server.metric("num_requests_waiting"),
        )
        if not report.leaked_blocks and not report.num_running:
            break
    return report


async def _cut(host: str, port: int, dice: random.Random, number: int, report: CutReport) -> None:
    body = {"model": "tiny", "prompt": "word " * dice.randint(1, 40) + str(number), "max_tokens": dice.randint(1, 60)}
    body |= {"stream": dice.random() < 0.7, "n": dice.choice([1, 1, 1, 3]), "ignore_eos": True}
    content = json.dumps(body).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(content)}\r\n"
    request = head.encode() + b"content-type: application/json\r\n\r\n" + content
    num_sent = dice.randint(0, len(request)) if dice.random() < 0.2 else len(request)
    num_read = dice.choice([0, 0, 1, 200, 1000, 5000])
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(request[:num_sent])
        await writer.drain()
        report.num_in_request += num_sent < len(request)
        if num_sent == len(request):
            await asyncio.sleep(dice.choice([0, 0.001, 0.01, 0.05]))
            if num_read:
                await asyncio.wait_for(reader.read(num_read), 60)
                report.num_in_answer += 1
    finally:
        if dice.random() < 0.5:
            writer.transport.abort()  # a reset instead of an orderly end
        else:
            writer.close()
    report.num_cuts += 1
