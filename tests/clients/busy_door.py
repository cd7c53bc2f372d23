"""A door in front of a server that says it is busy once, as a server with a full queue does."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx

RETRY_AFTER_SECONDS = 1
REFUSAL = {
    "error": {"message": "The queue is full.", "type": "rate_limit_error", "param": None, "code": "server_overloaded"}
}


class BusyDoor(ThreadingHTTPServer):
    """Answers the first POST with 429 and passes the others on."""

    daemon_threads = False  # closing waits for them

    def __init__(self, behind_url: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.behind_url = behind_url
        self.asked_at_seconds: list[float] = []  # time.monotonic() of each POST

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: BusyDoor

    def do_POST(self) -> None:
        self.server.asked_at_seconds.append(time.monotonic())
        body = self.rfile.read(int(self.headers["content-length"]))
        if len(self.server.asked_at_seconds) == 1:
            self._answer(429, json.dumps(REFUSAL).encode(), {"retry-after": str(RETRY_AFTER_SECONDS)})
            return
        headers = {"content-type": self.headers["content-type"]}
        url = self.server.behind_url + self.path
        passed_on = httpx.post(url, content=body, headers=headers, timeout=60, trust_env=False)
        self._answer(passed_on.status_code, passed_on.content, {})

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"content-type": "application/json", "content-length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def busy_door(behind_url: str) -> Iterator[BusyDoor]:
    """Open a door to the server at `behind_url`."""
    with BusyDoor(behind_url) as concurrency_limit:
        thread = threading.Thread(target=concurrency_limit.serve_forever)
        thread.start()
        try:
            yield concurrency_limit
        finally:
            concurrency_limit.shutdown()
            thread.join()
