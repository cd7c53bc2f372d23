"""`python -m tests.campaign.health_probe PORT`: ask for /livez until standard input ends, then print all latencies.

A process of its own: what floods the server would delay its own clock.
"""

import http.client
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

PAUSE_SECONDS = 0.005


def main() -> None:
    """Ask the server at the port that is the first argument."""
    seconds: list[float] = []
    is_over = threading.Event()

    def ask() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]))
        while not is_over.is_set():
            began = time.perf_counter()
            connection.request("GET", "/livez")
            connection.getresponse().read()
            seconds.append(time.perf_counter() - began)
            time.sleep(PAUSE_SECONDS)
        connection.close()

    asking = threading.Thread(target=ask)
    asking.start()
    print("asking", flush=True)
    sys.stdin.read()
    is_over.set()
    asking.join()
    print(json.dumps(seconds))


@contextmanager
def health_probe(port: int) -> Iterator[list[float]]:
    """Give a list that has the latencies, in seconds, when the context ends."""
    command = [sys.executable, "-m", "tests.campaign.health_probe", str(port)]
    seconds: list[float] = []
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield seconds
        finally:
            text, _ = process.communicate()
            seconds += json.loads(text)


if __name__ == "__main__":
    main()
