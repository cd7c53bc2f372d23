"""POST /v1/learn/kill_engine: who may kill the engine, when, and what is killed."""

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from caravan.server.http.api_keys import ApiKeys
from caravan.server.learn.kill_protocol import CONFIRMATION
from caravan.server.learn.kill_route import is_on_this_machine
from caravan.server.learn.tracer import Tracer
from tests.server.openai.api import Api, answered, open_api

PATH = "/v1/learn/kill_engine"
BODY = {"confirm": CONFIRMATION}


@pytest.fixture
def process() -> Iterator["subprocess.Popen[bytes]"]:
    """What takes the place of an engine's process."""
    with subprocess.Popen([sys.executable, "-Sc", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


def refused(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    error: dict[str, Any] = response.json()["error"]
    return error


def give_process(api: Api, process: "subprocess.Popen[bytes]") -> None:
    api.engine.engine_pid = process.pid  # type: ignore[attr-defined]


async def test_threat_40_the_process_is_killed_once_in_ten_seconds(process: "subprocess.Popen[bytes]") -> None:
    async with open_api(tracer=Tracer()) as api:
        give_process(api, process)
        assert answered(await api.http.post(PATH, json=BODY)) == {"model": "fake", "pid": process.pid}
        assert process.wait(60) == -9
        response = await api.http.post(PATH, json=BODY)
        assert "less than 10 s ago" in refused(response, 429)["message"]
        assert 1 <= int(response.headers["retry-after"]) <= 10


async def test_threat_40_others_cannot_kill_it(process: "subprocess.Popen[bytes]") -> None:
    async with open_api(tracer=Tracer()) as api:
        give_process(api, process)
        for name in ("forwarded", "via", "x-forwarded-for", "x-real-ip"):
            response = await api.http.post(PATH, json=BODY, headers={name: "127.0.0.1"})
            assert refused(response, 403)["code"] == "not_local"
        assert refused(await api.http.post(PATH, json={}), 400)["param"] == "confirm"
        assert refused(await api.http.post(PATH, json={"confirm": "yes"}), 400)["param"] == "confirm"
        text = await api.http.post(
            PATH, content='{"confirm": "kill the engine"}', headers={"content-type": "text/plain"}
        )
        refused(text, 415)
    async with open_api() as api:
        give_process(api, process)
        assert refused(await api.http.post(PATH, json=BODY), 403)["code"] == "learn_off"
    async with open_api(tracer=Tracer(), keys=ApiKeys({"one": "long-secret"})) as api:
        give_process(api, process)
        response = await api.http.post(PATH, json=BODY, headers={"authorization": "Bearer long-secret"})
        assert refused(response, 403)["code"] == "learn_off"
    assert process.poll() is None


@pytest.mark.parametrize(
    ("peer", "is_local"),
    [
        (("127.0.0.1", 5), True),
        (("::1", 5), True),
        (("192.168.0.5", 5), False),
        (("::ffff:10.0.0.1", 5), False),
        (("testclient", 5), False),
        (None, False),
    ],
)
def test_threat_40_only_a_peer_on_this_machine_counts(peer: tuple[str, int] | None, is_local: bool) -> None:
    assert is_on_this_machine({"client": peer, "headers": [(b"host", b"127.0.0.1")]}) is is_local


async def test_an_engine_without_a_process_of_its_own_is_not_killed() -> None:
    async with open_api(tracer=Tracer()) as api:
        assert "no engine process" in refused(await api.http.post(PATH, json=BODY), 503)["message"]
        api.engine.engine_pid = -1  # type: ignore[attr-defined]
        api.engine.state = "loading"
        assert "no engine process" in refused(await api.http.post(PATH, json=BODY), 503)["message"]
