"""A proxy that refuses one request with 429, as a server with a full queue does."""

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


class BusyProxy(ThreadingHTTPServer):
    """Answers the first POST with 429 and forwards the others."""

    daemon_threads = False  # closing waits for them

    def __init__(self, upstream_url: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream_url = upstream_url
        self.requested_at_seconds: list[float] = []  # time.monotonic() of each POST

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: BusyProxy

    def do_POST(self) -> None:
        self.server.requested_at_seconds.append(time.monotonic())
        body = self.rfile.read(int(self.headers["content-length"]))
        if len(self.server.requested_at_seconds) == 1:
            self._answer(429, json.dumps(REFUSAL).encode(), {"retry-after": str(RETRY_AFTER_SECONDS)})
            return
        headers = {"content-type": self.headers["content-type"]}
        url = self.server.upstream_url + self.path
        response = httpx.post(url, content=body, headers=headers, timeout=60, trust_env=False)
        self._answer(response.status_code, response.content, {})

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"content-type": "application/json", "content-length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@contextmanager
def busy_proxy(upstream_url: str) -> Iterator[BusyProxy]:
    """Run a proxy for the server at `upstream_url`."""
    with BusyProxy(upstream_url) as proxy:
        thread = threading.Thread(target=proxy.serve_forever)
        thread.start()
        try:
            yield proxy
        finally:
            proxy.shutdown()
            thread.join()
