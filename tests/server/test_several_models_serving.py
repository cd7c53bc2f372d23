"""Servers of several tiny models with engine processes: swaps under load, sleep, kills, and errors at the start."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.model.vocabularies import gpt2_metadata
from tests.support.extent import extent
from tests.support.gguf_files import write_tiny_llama
from tests.support.running_server import RunningServer, is_alive, running_server
from tests.support.tiny_llama import tiny_llama
from tests.support.waiting import eventually

pytestmark = pytest.mark.slow

NAMES = ("red", "green", "blue")
OPTIONS = ("--kv-cache-memory", "4MiB", "--num-threads", "1")
BUDGET = ("--models-memory", "600MB")  # each needs 254 MB, most of it for the process
PROMPTS = [{"prompt": "hello" * (1 + index), "seed": index, "temperature": index % 2} for index in range(6)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three models with different weights."""
    path = tmp_path_factory.mktemp("models")
    tokens = gpt2_metadata()["tokenizer.ggml.tokens"]
    assert isinstance(tokens, list)
    for seed, name in enumerate(NAMES):
        model = tiny_llama(seed, vocab_size=len(tokens), hidden_size=64, intermediate_size=96, head_dim=16)
        write_tiny_llama(path / f"{name}.gguf", model=model)
    return path


def models_file(folder: Path, *names: str) -> str:
    file = folder / f"{'-'.join(names)}.yaml"
    file.write_text("".join(f"- model: {folder / name}.gguf\n" for name in names))
    return f"--models={file}"


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[RunningServer]:
    with running_server(models_file(folder, *NAMES), *OPTIONS, *BUDGET) as running:
        yield running


def body(name: str, index: int, max_tokens: int = 40) -> dict[str, Any]:
    return {"model": name, "max_tokens": max_tokens, "ignore_eos": True} | PROMPTS[index]


def answer(server: RunningServer, request: dict[str, Any]) -> tuple[str, str]:
    """Return the text of a completion and its finish reason; reads a stream if the request asks for one."""
    response = server.http.post("/v1/completions", json=request, timeout=120)
    assert response.status_code == 200, response.text
    if not request.get("stream"):
        (choice,) = response.json()["choices"]
        return choice["text"], choice["finish_reason"]
    *events, done = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line.startswith("data: ")]
    assert done == "[DONE]"
    choices = [json.loads(event)["choices"][0] for event in events]
    return "".join(choice["text"] for choice in choices), choices[-1]["finish_reason"]


def states(server: RunningServer) -> dict[str, str]:
    return {entry["id"]: entry["state"] for entry in server.http.get("/v1/models").json()["data"]}


def total(server: RunningServer, name: str) -> float:
    """Return the sum of a series over the models."""
    lines = server.http.get("/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(f"caravan_{name}{{"))


@pytest.fixture(scope="module")
def solo(folder: Path) -> dict[tuple[str, int], tuple[str, str]]:
    """The answers of servers with one model each."""
    answers: dict[tuple[str, int], tuple[str, str]] = {}
    for name in NAMES:
        with running_server(folder / f"{name}.gguf", *OPTIONS) as alone:
            assert states(alone) == {name: "loaded"}
            assert "caravan_model_" not in alone.http.get("/metrics").text
            answers |= {(name, index): answer(alone, body(name, index)) for index in range(len(PROMPTS))}
    assert len(set(answers.values())) == len(answers), "no two are alike"
    return answers


def test_requests_for_three_models_under_a_budget_for_two_are_answered_as_alone(
    server: RunningServer, solo: dict[tuple[str, int], tuple[str, str]]
) -> None:
    numbers = random.Random(1)
    wanted = [(numbers.choice(NAMES), numbers.randrange(len(PROMPTS))) for _ in range(extent(200, 60))]
    most_processes = 0
    is_over = threading.Event()

    def watch() -> None:
        nonlocal most_processes
        while not is_over.wait(0.02):
            most_processes = max(most_processes, sum(map(is_alive, server.engine_pids())))

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        with ThreadPoolExecutor(16) as clients:
            requests = [body(*one) | {"stream": number % 2 == 0} for number, one in enumerate(wanted)]
            answers = [*clients.map(lambda request: answer(server, request), requests)]
    finally:
        is_over.set()
        watching.join()
    assert answers == [solo[one] for one in wanted]
    assert most_processes == 2
    assert total(server, "model_loads_total") >= 3
    assert total(server, "model_sleeps_total") >= 1
    assert total(server, "engine_restarts_total") == 0
    assert total(server, "request_incomplete_total") == 0
    assert sorted(states(server).values()) == ["asleep", "loaded", "loaded"]


def test_the_least_recently_used_model_sleeps(server: RunningServer) -> None:
    for name in ("red", "green", "red", "blue"):
        answer(server, body(name, 0))
    assert states(server) == {"red": "loaded", "green": "asleep", "blue": "loaded"}


def test_a_running_request_is_not_cut_by_a_swap(
    server: RunningServer, solo: dict[tuple[str, int], tuple[str, str]]
) -> None:
    """Both loaded models have a request that takes long, since their engines are stopped for a while."""
    for name in ("red", "green"):
        answer(server, body(name, 0))
    pids = server.engine_pids()
    assert len(pids) == 2
    with ThreadPoolExecutor(3) as clients:
        try:
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)
            running = [clients.submit(answer, server, body(name, 1)) for name in ("red", "green")]
            time.sleep(0.3)
            third = clients.submit(answer, server, body("blue", 1))
            time.sleep(0.7)
            assert server.engine_pids() == pids
            assert states(server)["blue"] == "asleep"
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)
        assert [one.result() for one in running] == [solo["red", 1], solo["green", 1]]
        assert third.result() == solo["blue", 1]


def test_an_engine_that_is_killed_while_it_loads_is_started_again(
    server: RunningServer, solo: dict[tuple[str, int], tuple[str, str]]
) -> None:
    for name in ("red", "green"):
        answer(server, body(name, 0))
    before = set(server.engine_pids())
    with ThreadPoolExecutor(2) as clients:
        waiting = [clients.submit(answer, server, body("blue", index)) for index in (0, 1)]
        eventually(lambda: bool(set(server.engine_pids()) - before))
        (pid,) = set(server.engine_pids()) - before
        os.kill(pid, signal.SIGKILL)
        assert [one.result() for one in waiting] == [solo["blue", 0], solo["blue", 1]]
    assert states(server)["blue"] == "loaded"


def test_an_engine_that_is_killed_while_it_answers_is_replaced_and_the_others_go_on(
    server: RunningServer, solo: dict[tuple[str, int], tuple[str, str]]
) -> None:
    for name in ("blue", "green", "red"):
        answer(server, body(name, 0))
    pid = max(server.engine_pids())  # of red, the latest
    with ThreadPoolExecutor(1) as clients:
        os.kill(pid, signal.SIGSTOP)
        running = clients.submit(answer, server, body("red", 1))
        time.sleep(0.3)
        os.kill(pid, signal.SIGKILL)
        assert answer(server, body("green", 1)) == solo["green", 1]
        assert running.result() == solo["red", 1]
    assert total(server, "engine_restarts_total") == 1
    assert pid not in server.engine_pids()


def test_a_model_that_cannot_be_loaded_fails_its_requests_alone(folder: Path, tmp_path: Path) -> None:
    for name in ("red", "green"):
        (tmp_path / f"{name}.gguf").write_bytes((folder / f"{name}.gguf").read_bytes())
    with running_server(models_file(tmp_path, "red", "green"), *OPTIONS, *BUDGET) as running:
        (tmp_path / "red.gguf").write_bytes(b"damaged")
        with ThreadPoolExecutor(3) as clients:
            failing = [clients.submit(running.http.post, "/v1/completions", json=body("red", 0)) for _ in range(2)]
            assert answer(running, body("green", 0))[1] == "length"
        for one in failing:
            response = one.result()
            assert response.status_code == 503
            assert response.json()["error"]["message"] == (
                "The model red cannot be loaded; the cause is in the server's log."
            )
            assert int(response.headers["retry-after"]) >= 1
        assert running.http.get("/readyz").status_code == 200
        assert states(running) == {"red": "asleep", "green": "loaded"}


def test_lines_of_a_model_that_can_never_be_loaded_end_with_that_error(folder: Path, tmp_path: Path) -> None:
    for name in ("red", "green"):
        (tmp_path / f"{name}.gguf").write_bytes((folder / f"{name}.gguf").read_bytes())
    options = (*OPTIONS, *BUDGET, "--batch-folder", f"{tmp_path}/batches")
    with running_server(models_file(tmp_path, "red", "green"), *options) as running:
        (tmp_path / "red.gguf").write_bytes(b"damaged")
        lines = [
            {"custom_id": f"{name}-{number}", "method": "POST", "url": "/v1/completions", "body": body(name, number)}
            for name in ("red", "green")
            for number in range(2)
        ]
        files = {"file": ("in.jsonl", "\n".join(map(json.dumps, lines)))}
        file = running.http.post("/v1/files", files=files, data={"purpose": "batch"}).json()
        asked = {"input_file_id": file["id"], "endpoint": "/v1/completions", "completion_window": "24h"}
        batch = running.http.post("/v1/batches", json=asked).json()
        done = {}

        def is_completed() -> bool:
            done.update(running.http.get(f"/v1/batches/{batch['id']}").json())
            return bool(done["status"] == "completed")

        eventually(is_completed, within_seconds=60)
        assert done["request_counts"] == {"total": 4, "completed": 2, "failed": 2}
        errors = running.http.get(f"/v1/files/{done['error_file_id']}/content").text.splitlines()
        assert [json.loads(error)["custom_id"] for error in errors] == ["red-0", "red-1"]
        message = json.loads(errors[0])["response"]["body"]["error"]["message"]
        assert message == "The model red cannot be loaded; the cause is in the server's log."


def test_the_queue_of_each_model_has_a_limit_of_its_own(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "models.yaml"
    text = f"- model: {folder}/red.gguf\n  max_queued_requests: 0\n  max_num_seqs: 1\n"
    file.write_text(f"{text}- model: {folder}/green.gguf\n  max_num_seqs: 1\n")
    with running_server(f"--models={file}", *OPTIONS, *BUDGET) as running, ThreadPoolExecutor(12) as clients:
        asked = {
            name: [clients.submit(running.http.post, "/v1/completions", json=body(name, 0)) for _ in range(6)]
            for name in ("red", "green")
        }
        statuses = {name: [one.result().status_code for one in sent] for name, sent in asked.items()}
    assert set(statuses["red"]) == {200, 429}
    assert statuses["green"] == [200] * 6


def test_an_idle_model_sleeps_and_wakes_for_the_next_request(folder: Path) -> None:
    with running_server(folder / "red.gguf", *OPTIONS, "--sleep-after", "1s") as running:
        first = answer(running, body("red", 1))
        (pid,) = running.engine_pids()
        eventually(lambda: states(running) == {"red": "asleep"})
        eventually(lambda: not is_alive(pid))
        assert running.http.get("/readyz").status_code == 200
        assert running.metric("model_loaded") == 0
        assert running.metric("model_needed_bytes") > 250e6
        explained = running.http.post("/v1/completions", json=body("red", 1) | {"explain": True}).json()
        assert explained["choices"][0]["text"] == first[0]
        timeline = {event["event"]: event for event in explained["explanation"]["timeline"]}
        assert timeline["admitted"]["predicted_wait_ms"] > 100
        assert timeline["model loaded"]["load_ms"] > 100
        assert running.metric("model_sleeps_total") >= 1
        assert running.metric("model_loads_total") >= 1


def test_a_request_that_waits_for_its_model_is_answered_before_the_server_ends(folder: Path) -> None:
    with running_server(models_file(folder, "red"), *OPTIONS) as running, ThreadPoolExecutor(1) as clients:
        waiting = clients.submit(answer, running, body("red", 0))
        eventually(lambda: states(running) == {"red": "loading"})
        running.process.send_signal(signal.SIGTERM)
        assert waiting.result()[1] == "length"
        assert running.process.wait(60) == 0
        eventually(lambda: not running.engine_pids())


def test_a_deadline_shorter_than_the_load_is_rejected_and_says_when_to_come_again(folder: Path) -> None:
    with running_server(models_file(folder, "red"), *OPTIONS) as running:
        headers = {"x-request-timeout-ms": "500"}
        response = running.http.post("/v1/completions", json=body("red", 0), headers=headers)
        assert response.status_code == 429
        assert 2 <= int(response.headers["retry-after"]) <= 4
        assert states(running) == {"red": "asleep"}


def run_serve(*options: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "caravan", "serve", "--port", "0", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_a_model_that_can_never_fit_is_refused_at_the_start(folder: Path) -> None:
    ended = run_serve(models_file(folder, "green", "red"), "--models-memory", "200MB")
    assert ended.returncode == 1
    assert "green: It needs 250," in ended.stderr
    assert "more than the 200,000,000 of all models. Raise --models-memory" in ended.stderr


def test_wrong_options_are_refused_at_once(folder: Path) -> None:
    (folder / "wrong.yaml").write_text(f"- model: {folder}/red.gguf\n  prot: 1\n")
    began = time.monotonic()
    ended = run_serve(f"--models={folder}/wrong.yaml")
    assert ended.returncode == 2
    assert ended.stderr.endswith("wrong.yaml, line 2: unknown option `prot`. Did you mean `port`?\n")
    assert time.monotonic() - began < 30
    assert run_serve("--models-memory", "1GiB").returncode == 2
    with running_server(models_file(folder, "red"), *OPTIONS) as running:
        port = running.url.rpartition(":")[2]
        ended = subprocess.run(
            [sys.executable, "-m", "caravan", "serve", f"--models={folder}/red.yaml", "--port", port],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert ended.returncode == 1
        assert ended.stderr.startswith(f"Cannot listen on 127.0.0.1:{port}: ")
