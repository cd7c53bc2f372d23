"""A server with adapters: the command line, the models, and an engine that is killed."""

import json
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.model.oracle import transformers_twin
from tests.support.gguf_files import write_tiny_llama
from tests.support.lora_folders import ALL_LINEAR, write_adapter
from tests.support.running_server import RunningServer, running_server
from tests.support.waiting import eventually

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("lora")
    twin = transformers_twin(write_tiny_llama(folder / "tiny.gguf"))
    options = []
    for seed, name in enumerate(("poems", "code")):
        options += ["--lora", f"{name}={write_adapter(folder / name, twin, ALL_LINEAR, seed=seed)}"]
    for seed in range(2, 4):
        write_adapter(folder / "all" / f"later{seed}", twin, ALL_LINEAR, seed=seed)
    options += ["--lora-folder", str(folder / "all"), "--kv-cache-memory", "1MiB", "--standby"]
    with running_server(folder / "tiny.gguf", *options) as running:
        yield running


def change(server: RunningServer, what: str, **body: str) -> None:
    answer = server.http.post(f"/v1/{what}_lora_adapter", json=body)
    assert answer.status_code == 200, answer.text


def names(server: RunningServer) -> list[str]:
    return [one["id"] for one in server.http.get("/v1/models").json()["data"]]


@pytest.fixture
def later(server: RunningServer) -> Iterator[str]:
    """The name of an adapter that is loaded while the server runs."""
    change(server, "load", lora_name="later", lora_path="later2")
    yield "later"
    if "later" in names(server):
        change(server, "unload", lora_name="later")


def request(name: str, max_tokens: int = 20) -> dict[str, Any]:
    fields = {"ignore_eos": True, "temperature": 0, "logprobs": 1}
    return {"model": name, "prompt": "hello", "max_tokens": max_tokens} | fields


def complete(server: RunningServer, name: str, max_tokens: int = 20) -> Any:
    answer = server.http.post("/v1/completions", json=request(name, max_tokens))
    assert answer.status_code == 200, answer.text
    choice = answer.json()["choices"][0]
    return choice["text"], choice["logprobs"]["token_logprobs"]


def test_adapters_are_models_of_the_server(server: RunningServer) -> None:
    data = server.http.get("/v1/models").json()["data"]
    assert [(one["id"], one.get("parent")) for one in data] == [("tiny", None), ("poems", "tiny"), ("code", "tiny")]
    assert "Model    tiny, poems, code: " in server.start_text
    assert server.http.post("/v1/completions", json={"model": "prose", "prompt": "a"}).status_code == 404


def test_requests_at_once_are_answered_as_alone(server: RunningServer) -> None:
    names = ["tiny", "poems", "code"]
    expected = {name: complete(server, name) for name in names}
    assert len({str(answer) for answer in expected.values()}) == 3
    with ThreadPoolExecutor(9) as executor:
        for name, answer in zip(names * 3, executor.map(lambda name: complete(server, name), names * 3), strict=True):
            assert answer == expected[name]


def test_a_new_engine_continues_with_the_same_adapters(server: RunningServer) -> None:
    expected = {name: complete(server, name, 300) for name in ("poems", "tiny")}
    with ThreadPoolExecutor(2) as executor:
        running = {name: executor.submit(complete, server, name, 300) for name in expected}
        server.kill_engine()
        for name, answer in running.items():
            assert answer.result() == expected[name]


def test_an_adapter_is_loaded_and_unloaded_in_the_middle_of_answers(server: RunningServer) -> None:
    num_restarts = server.metric("engine_restarts_total")
    expected = {name: complete(server, name, 300) for name in ("poems", "tiny")}
    with ThreadPoolExecutor(2) as executor:
        running = {name: executor.submit(complete, server, name, 300) for name in expected}
        change(server, "load", lora_name="later", lora_path="later2")
        assert names(server) == ["tiny", "poems", "code", "later"]
        for name, answer in running.items():
            assert answer.result() == expected[name]
    own = complete(server, "later", 300)
    assert own not in expected.values()
    with server.http.stream("POST", "/v1/completions", json=request("later", 300) | {"stream": True}) as response:
        lines = (line.removeprefix("data: ") for line in response.iter_lines() if line.startswith("data: {"))
        texts = [json.loads(next(lines))["choices"][0]["text"]]
        change(server, "unload", lora_name="later")
        assert server.http.post("/v1/completions", json=request("later")).status_code == 404
        texts += [json.loads(line)["choices"][0]["text"] for line in lines]
    assert "".join(texts) == own[0]
    assert server.metric("engine_restarts_total") == num_restarts


def test_an_old_name_has_the_answers_of_its_new_adapter(server: RunningServer, later: str) -> None:
    old = complete(server, later)
    change(server, "unload", lora_name=later)
    change(server, "load", lora_name=later, lora_path="later3")
    new = complete(server, later)
    assert new != old
    change(server, "unload", lora_name=later)
    change(server, "load", lora_name=later, lora_path="later2")
    assert complete(server, later) == old


@pytest.mark.parametrize("has_standby", [True, False])
def test_a_new_engine_has_the_adapters_that_were_loaded(server: RunningServer, later: str, has_standby: bool) -> None:
    expected = complete(server, later, 300)
    eventually(lambda: server.metric("standby_ready") == 1)
    num_restarts = server.metric("engine_restarts_total")
    with ThreadPoolExecutor(1) as executor:
        running = executor.submit(complete, server, later, 300)
        pids = server.engine_pids()
        for pid in pids if not has_standby else pids[:1]:
            os.kill(pid, signal.SIGKILL)
        assert running.result() == expected
    assert server.metric("engine_restarts_total") > num_restarts
    assert complete(server, later, 300) == expected


def test_what_is_no_adapter_is_refused(server: RunningServer) -> None:
    answer = server.http.post("/v1/load_lora_adapter", json={"lora_name": "x", "lora_path": ".."})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "lora_path"
    assert names(server) == ["tiny", "poems", "code"]
