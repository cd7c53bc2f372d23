"""SIGTERM under load, repeatedly: every accepted stream completes, and no process is left."""

import random
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from tests.support.running_server import is_alive, running_server

NUM_STREAMS = 8
BODY = {"model": "tiny", "prompt": "hello", "ignore_eos": True, "temperature": 0, "stream": True}


@dataclass
class ShutdownReport:
    """What came of it."""

    num_shutdowns: int = 0
    num_streams: int = 0
    num_finished: int = 0  # streams that came to their own end
    num_ended: int = 0  # streams that were ended with an error event
    num_refused: int = 0
    exit_codes: list[int] = field(default_factory=list)
    num_left_children: int = 0
    wrong: list[str] = field(default_factory=list)  # streams cut in mid-event, or without an end
    seconds: list[float] = field(default_factory=list)


def shutdown_campaign(model: Path, *, num_shutdowns: int, seed: int) -> ShutdownReport:
    """Start a server with eight streams and end it at a random moment, again and again."""
    report = ShutdownReport()
    dice = random.Random(seed)
    for _ in range(num_shutdowns):
        # Half of the servers give their streams next to no time.
        drain = dice.choice(["0.1", "30"])
        with running_server(model, "--kv-cache-memory", "4MiB", "--drain-timeout", drain) as server:
            children = server.children()
            bodies = [BODY | {"max_tokens": dice.choice([50, 300, 480]), "n": dice.choice([1, 4])} for _ in range(8)]
            threads = [threading.Thread(target=_stream, args=(server.url, body, report)) for body in bodies]
            for thread in threads:
                thread.start()
            time.sleep(dice.uniform(0.0, 0.6))
            began = time.monotonic()
            server.process.terminate()
            report.exit_codes.append(server.process.wait(60))
            report.seconds.append(time.monotonic() - began)
            for thread in threads:
                thread.join()
            report.num_left_children += sum(map(is_alive, children))
        report.num_shutdowns += 1
    return report


def _stream(url: str, body: dict[str, object], report: ShutdownReport) -> None:
    report.num_streams += 1
    try:
        response = httpx.post(f"{url}/v1/completions", json=body, timeout=60, trust_env=False)
    except httpx.ConnectError:  # the server had ended before this came
        report.num_refused += 1
        return
    except httpx.HTTPError as error:
        report.wrong.append(repr(error))
        return
    if response.status_code == 503:
        report.num_refused += 1
    elif response.status_code != 200 or not response.text.endswith("\n\ndata: [DONE]\n\n"):
        report.wrong.append(f"{response.status_code}: {response.text[-200:]!r}")
    elif '"error"' in response.text:
        report.num_ended += 1
    else:
        report.num_finished += 1
