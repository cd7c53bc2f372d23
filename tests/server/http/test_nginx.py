"""A server behind nginx with keep-alive connections: each user gets the responses to their own requests."""

import itertools
import json
import os
import random
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from tests.support.running_server import RunningServer, running_server
from tests.support.strict_http import GenerationResponse, StrictClient
from tests.support.waiting import eventually

NUM_EXCHANGES = 500
NUM_AT_ONCE = 8
NGINX = shutil.which("nginx", path=os.environ.get("PATH", os.defpath) + ":/usr/sbin")
# As nginx's documentation has it for WebSocket and for kept connections, both at once.
CONFIGURATION = """
daemon off;
master_process off;
error_log stderr;
pid nginx.pid;
events {{}}
http {{
    access_log off;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    client_max_body_size 64m;
    map $http_upgrade $connection_upgrade {{ default upgrade; '' ''; }}
    upstream caravan {{ server 127.0.0.1:{server_port}; keepalive 16; }}
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://caravan;
            proxy_http_version 1.1;
            proxy_set_header Host localhost;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection $connection_upgrade;
            proxy_pass_request_headers on;
        }}
    }}
}}
"""
pytestmark = [pytest.mark.slow, pytest.mark.skipif(NGINX is None, reason="There is no nginx.")]


class Proxy:
    """A running nginx."""

    def __init__(self, port: int, pid: int, server_port: int) -> None:
        self.port = port
        self._process = psutil.Process(pid)
        self._server_port = server_port

    def ports_to_server(self) -> set[int]:
        """Return its ends of the connections to the server."""
        connections = self._process.net_connections("tcp")
        return {it.laddr.port for it in connections if it.raddr and it.raddr.port == self._server_port}


@pytest.fixture(scope="module")
def server(tiny_model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    keys = tmp_path_factory.mktemp("keys") / "keys.txt"
    keys.write_text("ann: secret-of-ann\nbob: secret-of-bob\n")
    with running_server(tiny_model_path, "--kv-cache-memory", "4MiB", "--api-key-file", str(keys)) as running:
        yield running


@pytest.fixture(scope="module")
def proxy(server: RunningServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    assert NGINX is not None
    folder = tmp_path_factory.mktemp("nginx")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server_port = int(server.url.rpartition(":")[2])
    file = folder / "nginx.conf"
    file.write_text(CONFIGURATION.format(port=port, server_port=server_port))
    process = subprocess.Popen([NGINX, "-p", str(folder), "-e", "stderr", "-c", str(file)])
    try:
        eventually(lambda: is_listening(port))
        yield Proxy(port, process.pid, server_port)
    finally:
        process.terminate()
        process.wait(60)


def is_listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


class User:
    """One user with a connection to the proxy, who asks in many ways and checks that each answer is to the question."""

    def __init__(self, port: int, name: str, number: int) -> None:
        self._port = port
        self._name = name
        self._dice = random.Random(number)
        self._numbers = itertools.count()
        self._prefix = f"{name}-{number}"
        self._client = StrictClient(port)

    def exchange(self) -> str:
        """Ask in one way; return which."""
        ways = (self._whole, self._stream, self._no_json, self._no_model, self._wrong_key, self._no_route, self._get,
                self._head, self._large, self._leave)  # fmt: skip
        way = self._dice.choices(ways, weights=(5, 5, 2, 2, 2, 1, 2, 1, 1, 1))[0]
        way()
        return way.__name__

    def close(self) -> None:
        self._client.socket.close()

    def _ask(
        self, request: str, body: bytes = b"", *, name: str = "", key: str = "", reads: bool = True
    ) -> GenerationResponse | None:
        name = name or self._new_name()
        head = f"{request} HTTP/1.1\r\nHost: x\r\nX-Request-Id: {name}\r\nContent-Type: application/json\r\n"
        head += f"Authorization: Bearer {key or f'secret-of-{self._name}'}\r\n"
        head += self._dice.choice(["", "", "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n",
                                   "Connection: upgrade\r\nUpgrade: websocket\r\n"])  # fmt: skip
        if body:
            head += f"Content-Length: {len(body)}\r\n"
        if not reads:
            with StrictClient(self._port) as client:
                client.send(head.encode() + b"\r\n" + body)
                time.sleep(self._dice.choice([0, 0.002, 0.01]))
            return None
        self._client.send(head.encode() + b"\r\n" + body)
        answer = self._client.answer(request.partition(" ")[0])
        assert answer.headers["x-request-id"] == name, f"{request}: the answer to {answer.headers['x-request-id']}"
        if answer.closes:
            self._client.end()
            self.close()
            self._client = StrictClient(self._port)
        return answer

    def _new_name(self) -> str:
        return f"{self._prefix}-{next(self._numbers)}"

    def _completion(self, name: str, **fields: object) -> bytes:
        body = {"model": "tiny", "prompt": name, "echo": True, "max_tokens": self._dice.randint(1, 20)}
        return json.dumps(body | fields).encode()

    def _whole(self) -> None:
        name = self._new_name()
        answer = self._ask("POST /v1/completions", self._completion(name), name=name)
        assert answer is not None
        assert answer.status == 200
        assert answer.json()["choices"][0]["text"].startswith(name)

    def _stream(self) -> None:
        name = self._new_name()
        answer = self._ask("POST /v1/completions", self._completion(name, stream=True), name=name)
        assert answer is not None
        assert answer.status == 200
        assert "".join(chunk["choices"][0]["text"] for chunk in answer.chunks()).startswith(name)

    def _no_json(self) -> None:
        answer = self._ask("POST /v1/completions", b'{"model": ' + b"[" * self._dice.randint(1, 50))
        assert answer is not None
        assert (answer.status, answer.json()["error"]["type"]) == (400, "invalid_request_error")

    def _no_model(self) -> None:
        name = self._new_name()
        answer = self._ask("POST /v1/completions", self._completion(name, model=name), name=name)
        assert answer is not None
        assert answer.status == 404
        assert name in answer.json()["error"]["message"]

    def _wrong_key(self) -> None:
        body = self._completion("no key") + b" " * self._dice.choice([0, 100_000])
        answer = self._ask("POST /v1/completions", body, key="wrong")
        assert answer is not None
        assert answer.status == 401

    def _no_route(self) -> None:
        answer = self._ask("POST /v1/nothing", b"a" * self._dice.randint(1, 300_000))
        assert answer is not None
        assert answer.status == 404

    def _get(self) -> None:
        answer = self._ask("GET /v1/models")
        assert answer is not None
        assert answer.json()["data"][0]["id"] == "tiny"

    def _head(self) -> None:
        answer = self._ask("HEAD /openapi.json")
        assert answer is not None
        assert (answer.status, answer.body) == (200, b"")

    def _large(self) -> None:
        answer = self._ask("POST /v1/completions", b"a" * 9 * 2**20)
        assert answer is not None
        assert answer.status == 413

    def _leave(self) -> None:
        name = self._new_name()
        self._ask("POST /v1/completions", self._completion(name, stream=True, max_tokens=300), name=name, reads=False)


def test_threat_26_two_users_behind_a_proxy_that_keeps_connections_get_their_own_answers_only(
    server: RunningServer, proxy: Proxy
) -> None:
    def ask_on(number: int) -> list[str]:
        user = User(proxy.port, ("ann", "bob")[number % 2], number)
        ways = [user.exchange() for _ in range(NUM_EXCHANGES // NUM_AT_ONCE + 1)]
        user.close()
        return ways

    with ThreadPoolExecutor(NUM_AT_ONCE) as pool:
        asked = [pool.submit(ask_on, number) for number in range(NUM_AT_ONCE)]
        seen: list[set[int]] = []
        while not all(future.done() for future in asked):
            seen.append(proxy.ports_to_server())
            time.sleep(0.1)
        ways = [way for future in asked for way in future.result()]
    assert len(ways) >= NUM_EXCHANGES
    assert len(set(ways)) == 10
    assert any(earlier & later for earlier, later in itertools.pairwise(seen)), "no connection was used twice"
    server.http.headers["authorization"] = "Bearer secret-of-ann"
    eventually(lambda: server.metric("num_requests_running") == 0)
