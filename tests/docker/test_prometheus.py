"""Prometheus with our configuration beside a server under load: all panels show something, all alerts can be asked."""

import json
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.campaign.streams import mixed_bodies
from tests.support.running_server import RunningServer, running_server
from tests.support.waiting import eventually

DOCKER = Path(__file__).parent.parent.parent / "docker"
LOAD_SECONDS = 30
NUM_CLIENTS = 16
VALUES = {"$model_name": ".+", "$instance": ".+", "$__rate_interval": "20s"}  # what Grafana would put in
KEY = "key-of-the-load-and-of-prometheus"  # so that the panels of keys have series, too
OPTIONS = ("--served-model-name", "smollm2", "--max-model-len", "1536")
SMALL = ("--max-queued-requests", "6", "--max-num-seqs", "8", "--kv-cache-memory", "40MiB")

pytestmark = [
    pytest.mark.prometheus,
    pytest.mark.skipif(shutil.which("promtool") is None, reason="Prometheus is not installed"),
]


@dataclass(frozen=True)
class Watched:
    """A Prometheus that has watched a server, and since when."""

    http: httpx.Client
    server: RunningServer
    started_at_unix_seconds: float

    def ask(self, path: str, **params: str | float) -> Any:
        """Return what the HTTP API says."""
        answer = self.http.get(f"/api/v1/{path}", params=params).json()
        assert answer["status"] == "success", answer
        return answer["data"]

    def finite_values(self, expression: str) -> list[float]:
        """Return all numbers an expression had during the load."""
        span = {"start": self.started_at_unix_seconds, "end": time.time(), "step": 5}
        series = self.ask("query_range", query=expression, **span)["result"]
        values = [float(value) for one in series for _, value in one["values"]]
        return [value for value in values if math.isfinite(value)]

    def alert_state(self, name: str) -> str:
        """Return `inactive`, `pending` or `firing`."""
        return next(str(rule["state"]) for rule in self.rules() if rule["name"] == name)

    def rules(self) -> list[dict[str, Any]]:
        """Return all rules with what became of them."""
        return [rule for group in self.ask("rules")["groups"] for rule in group["rules"]]


@pytest.fixture(scope="module")
def watched(real_model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """A server after half a minute of load, in which its engine was killed once, with Prometheus beside it."""
    folder = tmp_path_factory.mktemp("prometheus")
    environ = os.environ | {"CARAVAN_API_KEY": KEY}
    with (
        running_server(real_model_path, *OPTIONS, *SMALL, environ=environ) as server,
        running_prometheus(folder, server.url) as http,
    ):
        started = time.time()
        put_load_on(server)
        yield Watched(http, server, started)


@contextmanager
def running_prometheus(folder: Path, url: str) -> Iterator[httpx.Client]:
    """Run Prometheus with the project's files; the server has another address, and a key."""
    config = (DOCKER / "prometheus/prometheus.yml").read_text()
    assert "caravan:8000" in config
    comment = "# authorization: {credentials: SECRET} # where the server has keys"
    assert comment in config
    config = config.replace(comment, f"authorization: {{credentials: {KEY}}}")
    (folder / "prometheus.yml").write_text(config.replace("caravan:8000", url.removeprefix("http://")))
    shutil.copy(DOCKER / "prometheus/rules.yml", folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    options = [f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/series"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(["prometheus", *options, f"--web.listen-address={address}"], stderr=log, stdout=log)
    try:
        with httpx.Client(base_url=f"http://{address}", timeout=10, trust_env=False) as http:
            eventually(lambda: process.poll() is not None or is_ready(http))
            assert process.poll() is None, (folder / "log").read_text()
            yield http
    finally:
        process.terminate()
        process.wait(60)


def is_ready(http: httpx.Client) -> bool:
    try:
        return http.get("/-/ready").status_code == 200
    except httpx.TransportError:
        return False


def put_load_on(server: RunningServer) -> None:
    """Ask for all kinds of text for half a minute, from more clients than the server takes."""
    ends_at = time.monotonic() + LOAD_SECONDS
    with ThreadPoolExecutor(NUM_CLIENTS) as clients:
        asking = [clients.submit(ask_until, server.url, ends_at, number) for number in range(NUM_CLIENTS)]
        time.sleep(LOAD_SECONDS / 3)
        os.kill(server.engine_pid(), signal.SIGKILL)
    statuses = Counter(status for client in asking for status in client.result())
    assert set(statuses) <= {200, 429, 503}, statuses  # 503: while there was no engine
    assert statuses[200] > 20
    assert statuses[429] > 0


def ask_until(url: str, ends_at: float, number: int) -> list[int]:
    """Ask for one answer after another; each fifth is cut off, each seventh repeats its prompt for draft tokens."""
    statuses = []
    with httpx.Client(base_url=url, timeout=60, trust_env=False, headers={"x-api-key": KEY}) as http:
        for index, body in enumerate(cycle(mixed_bodies(4 * NUM_CLIENTS)[number::NUM_CLIENTS])):
            if time.monotonic() > ends_at:
                break
            if index % 7 == 0:
                body = {"model": "smollm2", "prompt": "one two three four five six " * 30, "max_tokens": 60}
                body |= {"temperature": 0, "stream": True}
            with http.stream("POST", "/v1/completions", json=body) as response:
                statuses.append(response.status_code)
                if index % 5 == 4:
                    next(response.iter_bytes(), None)
                    continue
                response.read()
            if response.status_code != 200:
                time.sleep(0.5)
    return statuses


def panel_queries() -> dict[str, list[str]]:
    """Return the queries of each panel by its title, as Grafana would send them."""
    dashboard = json.loads((DOCKER / "grafana/dashboards/caravan.json").read_text())
    queries: dict[str, list[str]] = {}
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            query = target["expr"]
            for name, value in VALUES.items():
                query = query.replace(name, value)
            assert "$" not in query
            queries.setdefault(panel["title"], []).append(query)
    return queries


@pytest.mark.parametrize("title", panel_queries())
def test_each_query_of_a_panel_has_shown_something(watched: Watched, title: str) -> None:
    for query in panel_queries()[title]:
        assert watched.finite_values(query), query


def test_the_variables_of_the_dashboard_have_values(watched: Watched) -> None:
    dashboard = json.loads((DOCKER / "grafana/dashboards/caravan.json").read_text())
    asked = [one["query"] for one in dashboard["templating"]["list"] if one["type"] == "query"]
    assert len(asked) == 2
    for query in asked:
        found = re.fullmatch(r"label_values\((\w+), (\w+)\)", query)
        assert found
        assert len(watched.ask(f"label/{found[2]}/values", **{"match[]": found[1]})) == 1


def test_every_rule_is_evaluated_without_an_error(watched: Watched) -> None:
    rules = watched.rules()
    assert len(rules) == len(yaml.safe_load((DOCKER / "prometheus/rules.yml").read_text())["groups"][0]["rules"])
    for rule in rules:
        assert (rule["health"], rule.get("lastError", "")) == ("ok", ""), rule["name"]
        if rule["type"] == "recording":
            assert watched.finite_values(rule["name"]), rule["name"]


def test_what_an_alert_looks_at_is_there(watched: Watched) -> None:
    alerts = [rule for rule in watched.rules() if rule["type"] == "alerting"]
    assert len(alerts) == 6
    for alert in alerts:
        looked_at, comparison, _ = re.split(r" (==|>) ", alert["query"])
        assert comparison
        assert watched.finite_values(looked_at), alert["name"]


def test_what_happened_has_raised_alerts_and_nothing_else_has(watched: Watched) -> None:
    assert watched.alert_state("CaravanEngineRestarts") == "firing"  # one was killed
    assert watched.alert_state("CaravanRejectsRequests") == "pending"  # more came than there was room for
    assert watched.alert_state("CaravanDown") == "inactive"
    assert watched.alert_state("CaravanNotReady") == "inactive"
    watched.server.process.send_signal(signal.SIGSTOP)
    try:
        eventually(lambda: watched.alert_state("CaravanDown") == "pending")
    finally:
        watched.server.process.send_signal(signal.SIGCONT)


@pytest.mark.parametrize(
    "command",
    [
        ["check", "config", "prometheus.yml"],
        ["check", "rules", "rules.yml"],
        ["test", "rules", "rules.test.yml"],
    ],
)
def test_prometheus_own_tool_finds_nothing_wrong(command: list[str]) -> None:
    found = subprocess.run(["promtool", *command], cwd=DOCKER / "prometheus", capture_output=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr
