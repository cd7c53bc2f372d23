"""A whole server in the test's event loop, over an engine process without a model."""

import asyncio
import json
import logging
import os
import signal
import socket
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from caravan.scheduler.messages import StartEngine
from caravan.server.engine.client import EngineClient
from caravan.server.engine.output_queue import EngineUnavailable
from caravan.server.engine.process import EngineStartFailed
from caravan.server.http import graceful_shutdown, hangup
from caravan.server.serve import address_of, bind, run, run_server
from caravan.server.settings import load_settings
from tests.support.waiting import until

BODY = {"model": "tiny", "prompt": "hello", "max_tokens": 20}
ENDLESS = BODY | {"max_tokens": 400, "stream": True}
TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"


class Server:
    """A server that runs, its engine and a client of it."""

    def __init__(self, task: asyncio.Task[None], engine: EngineClient, http: httpx.AsyncClient) -> None:
        self.task = task
        self.engine = engine
        self.http = http

    async def stopped(self) -> None:
        """Wait until it has stopped."""
        await asyncio.wait_for(self.task, 60)


@asynccontextmanager
async def serving(model: Path, step_seconds: float = 0.001, **options: Any) -> AsyncIterator[Server]:
    settings = load_settings({"model": str(model), "served_model_name": "tiny,org/tiny"} | options)
    engine = EngineClient(StartEngine(model_path=""), ("-m", "tests.support.scripted_engine", str(step_seconds)))
    listener = bind("127.0.0.1", 0, settings.uds)
    address = address_of(listener) if settings.uds is None else "http://localhost"
    transport = None if settings.uds is None else httpx.AsyncHTTPTransport(uds=str(settings.uds))
    task = asyncio.create_task(run_server(settings, model, engine, listener, settings.load_keys()))
    async with httpx.AsyncClient(base_url=address, timeout=20, trust_env=False, transport=transport) as http:
        await until(lambda: task.done() or engine.is_ready)
        try:
            if not task.done():
                assert (await http.get("/readyz")).status_code == 200
            yield Server(task, engine, http)
        finally:
            if not task.done():
                os.kill(os.getpid(), signal.SIGTERM)
                await asyncio.wait_for(task, 60)


async def test_a_server_answers_and_stops_at_a_signal(
    tiny_model_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "caravan.requests")
    async with serving(tiny_model_path, access_log=True) as server:
        whole = (await server.http.post("/v1/completions", json=BODY)).json()
        assert whole["choices"][0]["finish_reason"] == "length"
        assert whole["usage"]["completion_tokens"] == 20
        streamed = await server.http.post("/v1/completions", json=BODY | {"stream": True})
        events = [json.loads(line[6:]) for line in streamed.text.split("\n\n") if line.startswith("data: {")]
        text = "".join(event["choices"][0]["text"] for event in events if event["choices"])
        assert text == whole["choices"][0]["text"]
        os.kill(os.getpid(), signal.SIGTERM)
        await server.stopped()
        with pytest.raises(httpx.ConnectError):
            await server.http.get("/livez")
    shown = capsys.readouterr().out
    assert "Model    tiny, org/tiny: " in shown
    assert f"\nReady    {str(server.http.base_url).rstrip('/')}/v1 for OpenAI clients" in shown
    assert len([record for record in caplog.records if record.name == "caravan.requests"]) == 3


async def test_a_server_on_a_unix_socket_answers_without_a_key(
    tiny_model_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "socket"
    with bind("", 0, path):  # a server that was killed leaves its socket
        pass
    async with serving(tiny_model_path, uds=str(path), root_path="/llm/", access_log=True) as server:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        for prefix in ("", "/llm"):
            answer = await server.http.post(f"{prefix}/v1/completions", json=BODY)
            assert answer.json()["usage"]["completion_tokens"] == 20
        assert (await server.http.get("/openapi.json")).json()["servers"] == [{"url": "/llm"}]
        with pytest.raises(OSError, match="in use"):  # another server cannot take it
            bind("", 0, path)
        os.kill(os.getpid(), signal.SIGTERM)
        await server.stopped()
    assert not path.exists()
    assert f"\nReady    unix:{path} with /v1 for OpenAI clients; its reference is at /docs" in capsys.readouterr().out


async def test_keys_are_read_again_at_a_hangup_and_stay_if_the_file_is_wrong(
    tiny_model_path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hangup, "has_terminal", lambda: False)
    caplog.set_level(logging.INFO, "caravan.server.shared_parts")
    file = tmp_path / "keys.txt"
    file.write_text("ann: key-of-ann\n")
    async with serving(tiny_model_path, api_key_file=str(file)) as server:
        for text, says in (
            ("ann: short\n", "The API keys stay as they are. --api-key, --api-key-file: The key 'ann' must have"),
            ("# none\n", "The API keys stay as they are. The file has no key."),
            ("bob: key-of-bob\ncyd: key-of-cyd\n", "The API keys were read again: 2."),
        ):
            asked = await server.http.post("/v1/completions", json=BODY, headers={"x-api-key": "key-of-ann"})
            assert asked.status_code == 200
            file.write_text(text)
            os.kill(os.getpid(), signal.SIGHUP)
            await until(partial(_is_in_log, caplog, says))
        for name, status in (("ann", 401), ("bob", 200)):
            asked = await server.http.post("/v1/completions", json=BODY, headers={"x-api-key": f"key-of-{name}"})
            assert asked.status_code == status
        metrics = (await server.http.get("/metrics", headers={"x-api-key": "key-of-bob"})).text
        assert 'caravan_key_requests_total{key="ann",model_name="tiny"} 3.0' in metrics
        assert 'caravan_key_requests_total{key="bob",model_name="tiny"} 1.0' in metrics
        assert 'caravan_engine_resident_memory_bytes{model_name="tiny"}' in metrics
        assert 'caravan_build_info{device="auto"' in metrics


def _is_in_log(caplog: pytest.LogCaptureFixture, text: str) -> bool:
    return text in caplog.text


def test_a_file_that_is_no_socket_stays(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("mine")
    with pytest.raises(OSError, match="in use"):
        bind("", 0, path)
    assert path.read_text() == "mine"


async def test_a_crashed_engine_is_replaced_and_its_stream_continues(tiny_model_path: Path) -> None:
    async with serving(tiny_model_path, 0.01) as server:
        stream = asyncio.create_task(server.http.post("/v1/completions", json=BODY | {"max_tokens": 60}))
        await until(lambda: len(server.engine._requests) == 1)
        await asyncio.sleep(0.1)
        pid = server.engine.engine_pid
        os.kill(pid, signal.SIGKILL)
        await until(lambda: not server.engine.is_ready)
        assert (await server.http.get("/readyz")).status_code == 503
        assert (await server.http.post("/v1/completions", json=BODY)).status_code == 200, "it waits for the next engine"
        answer = (await stream).json()
        assert answer["usage"]["completion_tokens"] == 60
        assert server.engine.engine_pid != pid
        assert "caravan_engine_restarts_total" in (await server.http.get("/metrics")).text


async def test_requests_complete_after_a_signal_and_new_ones_are_rejected(tiny_model_path: Path) -> None:
    async with serving(tiny_model_path, 0.01, drain_timeout=20) as server:
        running = asyncio.create_task(server.http.post("/v1/completions", json=BODY | {"max_tokens": 50}))
        await until(lambda: len(server.engine._requests) == 1)
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(0.01)
        assert (await server.http.post("/v1/completions", json=BODY)).status_code == 503
        assert (await running).json()["usage"]["completion_tokens"] == 50
        await server.stopped()


@pytest.mark.parametrize("num_signals", [1, 2])
async def test_streams_end_with_an_error_at_the_drain_timeout_or_a_second_signal(
    num_signals: int, tiny_model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graceful_shutdown, "SAME_SIGNAL_SECONDS", 0.01)
    async with serving(tiny_model_path, 0.02, drain_timeout=0.1 if num_signals == 1 else 60) as server:
        running = asyncio.create_task(server.http.post("/v1/completions", json=ENDLESS))
        await until(lambda: len(server.engine._requests) == 1)
        for _ in range(num_signals):
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.sleep(0.05)
        answer = await running
        assert answer.status_code == 200
        *_, error, done = answer.text.split("data: ")
        assert error.startswith('{"error":{')
        assert done == "[DONE]\n\n"
        await server.stopped()
        with pytest.raises(EngineUnavailable):
            server.engine.submit(None)  # type: ignore[arg-type]


async def test_an_engine_that_cannot_start_ends_the_server(tiny_model_path: Path) -> None:
    settings = load_settings({"model": str(tiny_model_path)})
    engine = EngineClient(StartEngine(model_path=""), ("-c", "raise SystemExit(4)"))
    with bind("127.0.0.1", 0) as listener, pytest.raises(EngineStartFailed, match=r"\(exit status 4\)"):
        await run_server(settings, tiny_model_path, engine, listener)


def test_a_server_runs_on_uvloop() -> None:
    seen: list[str] = []

    async def server() -> None:
        seen.append(type(asyncio.get_running_loop()).__module__)

    run(server())
    assert seen == ["uvloop"]


def test_the_address_of_a_socket_is_a_url() -> None:
    with bind("127.0.0.1", 0) as listener:
        assert address_of(listener) == f"http://127.0.0.1:{listener.getsockname()[1]}"
        assert address_of(listener, is_encrypted=True).startswith("https://127.0.0.1:")
        listener.listen()
        with pytest.raises(OSError, match="in use"):
            bind(*listener.getsockname())
    if socket.has_ipv6:
        with bind("::1", 0) as listener:
            assert address_of(listener) == f"http://[::1]:{listener.getsockname()[1]}"


@pytest.mark.parametrize(("attribute", "names"), [("", "caravan"), (", scrape", "vllm")])
async def test_names_and_reasons_of_metrics_follow_the_options(
    tiny_model_path: Path, tmp_path: Path, attribute: str, names: str
) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"monitor: secret-of-monitor{attribute}\n")
    async with serving(tiny_model_path, api_key_file=str(keys), metrics_names=names) as server:
        headers = {"authorization": "Bearer secret-of-monitor"}
        text = (await server.http.get("/metrics", headers=headers)).text
    assert "\ncaravan_queued_tokens{" in text
    assert ("\nvllm:num_requests_waiting{" in text) == (names == "vllm")
    assert ('reason="other_key"' in text) == bool(attribute)
