"""A server that answers everything with an empty object keeps no rule: every rule can fail."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.conformance.__main__ import all_rules
from tests.conformance.report import Rule
from tests.conformance.target import Target


class EmptyAnswers(BaseHTTPRequestHandler):
    """Finds everything right and has nothing to say."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.rfile.read(max(0, int(self.headers.get("content-length", 0))))
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    do_POST = do_GET

    def log_message(self, *_: object) -> None:
        pass


class QuietServer(ThreadingHTTPServer):
    """Says nothing of requests that it cannot read; hostile ones are among them."""

    def handle_error(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def empty() -> Iterator[Target]:
    server = QuietServer(("127.0.0.1", 0), EmptyAnswers)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    target = Target(f"http://127.0.0.1:{server.server_port}", "sesame-open", "empty")
    yield target
    target.close()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("rule", all_rules(), ids=lambda rule: f"{rule.group}: {rule.name}")
def test_no_rule_is_kept_by_a_server_that_says_nothing(rule: Rule, empty: Target) -> None:
    with pytest.raises(Exception):  # noqa: B017  # whatever a rule raises
        rule.check(empty)
