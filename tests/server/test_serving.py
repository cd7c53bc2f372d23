"""A server with a tiny model: engine crashes, disconnects, signals and start-up errors."""

import errno
import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from caravan.server.http.graceful_shutdown import SAME_SIGNAL_SECONDS
from tests.support.gguf_files import write_tiny_llama
from tests.support.running_server import RunningServer, is_alive, running_server
from tests.support.waiting import eventually

pytestmark = pytest.mark.slow

LONG = {"model": "tiny", "prompt": "hello", "max_tokens": 400, "ignore_eos": True, "temperature": 0}
ENDLESS = LONG | {"stream": True, "n": 64}  # four at a time


@pytest.fixture(scope="module")
def server(tiny_model_path: Path) -> Iterator[RunningServer]:
    with running_server(tiny_model_path, "--kv-cache-memory", "256KiB") as running:
        yield running


def is_idle(server: RunningServer) -> bool:
    return server.metric("num_requests_running") == 0 and server.metric("kv_cache_usage_perc") == 0


def is_being_replaced(server: RunningServer) -> bool:
    return bool(server.http.get("/v1/models").json()["data"][0]["state"] == "replacing")


def events_of(response: httpx.Response) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in response.iter_lines() if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def test_the_start_up_text_shows_the_model_and_its_capacity(server: RunningServer) -> None:
    assert re.search(r"^Model    tiny: \d+M parameters, bfloat16, \d+ MB$", server.start_text, re.MULTILINE)
    assert re.search(r"KV pool  [\d,]+ tokens in [\d,]+ blocks of 16 \(0 MB\)", server.start_text)
    assert re.search(r"Room     for \d+ requests of 512 tokens; 64 run at once", server.start_text)


def prefix_misses(server: RunningServer) -> dict[str, float]:
    found = re.findall(r'^caravan_prefix_cache_misses_total{.*reason="(\w+)"} (\S+)$', server.metrics(), re.MULTILINE)
    return {reason: float(count) for reason, count in found}


def test_a_request_is_explained_why_its_prefix_was_not_found_after_a_crash_too(server: RunningServer) -> None:
    def miss_of(prompt: list[int]) -> tuple[str, int]:
        body = LONG | {"prompt": prompt, "max_tokens": 1, "explain": True}
        timeline = server.http.post("/v1/completions", json=body).json()["explanation"]["timeline"]
        (joined,) = (event for event in timeline if event["event"] == "joined")
        return joined["miss"], joined["miss_token"]

    prompt, before = [*range(5, 45)], prefix_misses(server)
    changed = [*prompt[:20], 100, *prompt[21:]]
    assert miss_of(prompt) == ("not seen", 0)
    assert miss_of(prompt) == ("too short", 32)
    assert miss_of(changed) == ("differs", 20)
    server.kill_engine()
    assert miss_of(changed) == ("not seen", 0)
    counts = {reason: count - before[reason] for reason, count in prefix_misses(server).items()}
    assert counts == {"not_seen": 80, "too_short": 8, "differs": 24, "evicted": 0, "scored": 0}


def test_the_api_process_does_not_load_torch(server: RunningServer) -> None:
    assert "libtorch" not in Path(f"/proc/{server.process.pid}/maps").read_text()
    assert "numpy" not in Path(f"/proc/{server.process.pid}/maps").read_text()
    assert "libtorch" in Path(f"/proc/{server.engine_pid()}/maps").read_text()


def test_a_stream_has_the_text_of_the_same_request_without_streaming(server: RunningServer) -> None:
    for prompt in ("hello 世界 👩‍👩‍👧", "日本語", "😀😀", "naïve"):
        body = LONG | {"prompt": prompt, "max_tokens": 150, "stop": ["he", "or ", "�x"]}
        whole = server.http.post("/v1/completions", json=body).json()["choices"][0]
        with server.http.stream("POST", "/v1/completions", json=body | {"stream": True}) as response:
            chunks = [event["choices"][0] for event in events_of(response)]
        assert "".join(chunk["text"] for chunk in chunks) == whole["text"]
        assert chunks[-1]["finish_reason"] == whole["finish_reason"]


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
def test_threat_11_a_disconnect_frees_the_blocks_within_two_steps(server: RunningServer, stream: bool) -> None:
    eventually(lambda: is_idle(server))
    with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2]))) as client:
        body = json.dumps(LONG | {"stream": stream}).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n"
        client.sendall(head.encode() + b"content-type: application/json\r\n\r\n" + body)
        eventually(lambda: server.metric("num_requests_running") == 1)
        produced_before = server.metric("generation_tokens_total")
    eventually(lambda: is_idle(server))
    assert server.metric("generation_tokens_total") - produced_before < 200  # of 400: it did not run to its end
    assert server.metric("request_success_total") >= 0


def test_threat_8_an_endless_head_is_rejected(server: RunningServer) -> None:
    with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2]))) as client:
        client.sendall(b"GET /livez HTTP/1.1\r\nx-long: ")
        for _ in range(1000):
            client.sendall(b"a" * 1024)
            if select.select([client], [], [], 0.001)[0]:
                break
        answer = client.recv(4096)
    assert answer.startswith(b"HTTP/1.1 431 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["type"] == "invalid_request_error"
    long = {"x-long": "a" * 8000}
    assert [server.http.get("/livez", headers=long).status_code for _ in range(12)] == [200] * 12  # 96 KB, one by one


def test_threat_16_more_streams_than_fit_give_the_same_results_as_alone(server: RunningServer) -> None:
    # 256 KiB hold 1,024 tokens (512 in float32); 24 requests of 180 tokens want four times that
    bodies = [
        LONG | {"prompt": f"request number {i}", "max_tokens": 160, "temperature": 1.0, "seed": i} for i in range(24)
    ]
    alone = [server.http.post("/v1/completions", json=body).json()["choices"][0]["text"] for body in bodies]
    together: list[str | None] = [None] * len(bodies)
    again = {"stream": True, "cache_salt": "together"}  # without draft tokens from the answers above

    def ask(index: int) -> None:
        with httpx.stream("POST", f"{server.url}/v1/completions", json=bodies[index] | again, timeout=120) as r:
            together[index] = "".join(event["choices"][0]["text"] for event in events_of(r))

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(len(bodies))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == alone
    assert server.metric("num_preemptions_total") > 0
    eventually(lambda: is_idle(server))


def test_a_new_engine_resumes_the_streams_of_a_killed_one(server: RunningServer) -> None:
    drawn = LONG | {"temperature": 1.0, "seed": 7}  # an answer that repeats itself is over before the engine is killed
    whole = server.http.post("/v1/completions", json=drawn).json()["choices"][0]["text"]
    restarts, engine_pid = server.metric("engine_restarts_total"), server.engine_pid()
    again = drawn | {"stream": True, "cache_salt": "again"}  # without draft tokens from the answer above
    with server.http.stream("POST", "/v1/completions", json=again) as response:
        lines = response.iter_lines()
        first = json.loads(next(lines).removeprefix("data: "))
        os.kill(engine_pid, signal.SIGKILL)
        eventually(lambda: is_being_replaced(server) or server.metric("engine_restarts_total") > restarts)
        assert server.http.get("/livez").status_code == 200
        waited = server.http.post("/v1/completions", json=drawn | {"cache_salt": "waited"})
        assert waited.status_code == 200, "it waited for the next engine"
        assert waited.json()["choices"][0]["text"] == whole
        rest = [line.removeprefix("data: ") for line in lines if line]
    assert rest.pop() == "[DONE]"
    assert "".join(event["choices"][0]["text"] for event in [first, *map(json.loads, rest)]) == whole
    assert server.metric("engine_restarts_total") == restarts + 1
    assert server.metric("requests_replayed_total") >= 1
    explanation = server.http.get(f"/v1/requests/{first['id']}/explain").json()
    events = [one["event"] for one in explanation["timeline"]]
    assert events[:5] == ["arrived", "tokenized", "admitted", "queued", "joined"]
    assert events[-1] == "finished"
    replaced = events.index("engine replaced")
    assert 0 < explanation["timeline"][replaced]["tokens"] < 400
    assert events[replaced + 1 :].count("joined") == 1
    assert explanation["choices"][0]["tokens"] == 400
    assert server.metric("engine_down_seconds_total") > 0
    assert server.http.get("/readyz").status_code == 200


def test_an_engine_that_stops_is_not_ready_within_three_seconds(server: RunningServer) -> None:
    engine = server.engine_pid()
    answers: list[httpx.Response] = []
    os.kill(engine, signal.SIGSTOP)
    try:
        eventually(lambda: server.http.get("/readyz").status_code == 503)
        asked = threading.Thread(target=lambda: answers.append(server.http.post("/v1/completions", json=LONG)))
        asked.start()
        eventually(lambda: server.metric("queued_tokens") > 0)
    finally:
        with suppress(ProcessLookupError):  # it was silent for too long, and replaced
            os.kill(engine, signal.SIGCONT)
    asked.join()
    assert answers[0].status_code == 200, "it waited"
    eventually(lambda: server.http.get("/readyz").status_code == 200)


def test_threat_20_the_engine_ends_when_the_server_is_killed(tiny_model_path: Path) -> None:
    with running_server(tiny_model_path, "--kv-cache-memory", "4MiB") as running:
        children = running.children()
        assert len(children) == 2  # the engine and the chat template's worker
        chat = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}]}
        assert running.http.post("/tokenize", json=chat).status_code == 200  # the worker has started
        running.process.kill()
        eventually(lambda: not any(map(is_alive, children)))


def test_threat_20_sigterm_lets_a_stream_finish_and_new_requests_get_503(tiny_model_path: Path) -> None:
    with running_server(tiny_model_path, "--kv-cache-memory", "4MiB") as running:
        children = running.children()
        with running.http.stream("POST", "/v1/completions", json=LONG | {"stream": True}) as response:
            lines = response.iter_lines()
            next(lines)
            running.process.terminate()
            eventually(lambda: running.http.get("/readyz").status_code == 503)
            with httpx.Client(base_url=running.url, trust_env=False) as another:  # a new connection is not refused
                refused = another.post("/v1/completions", json=LONG)
                assert (refused.status_code, refused.json()["error"]["code"]) == (503, "unavailable")
                assert int(refused.headers["retry-after"]) > 0
                assert another.get("/livez").status_code == 200
            events = [line for line in lines if line]
            assert events[-1] == "data: [DONE]"
            assert "error" not in events[-2]
        assert running.process.wait(60) == 0
        assert not any(map(is_alive, children))


@pytest.mark.parametrize(
    ("number", "is_whole_service"),
    [(signal.SIGTERM, False), (signal.SIGINT, False), (signal.SIGTERM, True)],
    ids=["SIGTERM to the group", "Ctrl-C", "SIGTERM to every process"],
)
def test_threat_20_a_signal_to_all_processes_lets_a_stream_finish(
    tiny_model_path: Path, number: int, is_whole_service: bool
) -> None:
    with running_server(tiny_model_path, "--kv-cache-memory", "4MiB", in_new_group=True) as running:
        children = running.children()
        assert len(children) == 2  # the engine and the chat template's worker
        with running.http.stream("POST", "/v1/completions", json=LONG | {"stream": True}) as response:
            lines = response.iter_lines()
            next(lines)
            os.kill(running.process.pid, number)  # as `timeout` does, which also sends it to the group
            os.killpg(running.process.pid, number)
            for child in children if is_whole_service else ():  # as systemd does
                os.kill(child, number)
            events = [line for line in lines if line]
            assert events[-1] == "data: [DONE]"
            assert "error" not in events[-2]
        assert running.process.wait(60) == (130 if number == signal.SIGINT else 0)
        eventually(lambda: not any(map(is_alive, children)))


@pytest.mark.skipif(shutil.which("timeout") is None, reason="coreutils' timeout is not installed")
def test_threat_20_the_timeout_command_lets_a_stream_finish(tiny_model_path: Path) -> None:
    command = [
        "timeout",
        "300",
        sys.executable,
        "-m",
        "caravan",
        "serve",
        str(tiny_model_path),
        "--port",
        "0",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        ready = next(line for line in process.stdout if line.startswith("Ready"))
        url = ready.split()[1] + "/completions"
        with httpx.stream("POST", url, json=LONG | {"stream": True}, timeout=60, trust_env=False) as response:
            lines = response.iter_lines()
            next(lines)
            process.terminate()  # `timeout` sends it to the server, and again to the group of both
            events = [line for line in lines if line]
        assert events[-1] == "data: [DONE]"
        assert "error" not in events[-2]
        assert process.wait(60) == 0


def test_a_stream_that_outlasts_the_drain_timeout_ends_with_an_error_and_done(tiny_model_path: Path) -> None:
    with running_server(
        tiny_model_path, "--kv-cache-memory", "4MiB", "--max-num-seqs", "4", "--drain-timeout", "0.2"
    ) as running:
        with running.http.stream("POST", "/v1/completions", json=ENDLESS) as response:
            lines = response.iter_lines()
            next(lines)
            running.process.terminate()
            events = [line.removeprefix("data: ") for line in lines if line]
        assert events[-1] == "[DONE]"
        assert json.loads(events[-2])["error"]["code"] == "unavailable"
        assert running.process.wait(60) == 0


def test_threat_20_a_connection_made_before_the_shutdown_gets_a_response(tiny_model_path: Path) -> None:
    with running_server(tiny_model_path) as running:
        port = httpx.URL(running.url).port
        assert port is not None
        with socket.create_connection(("127.0.0.1", port)) as connection:
            assert running.http.get("/livez").status_code == 200  # the server has taken that connection too
            running.process.terminate()
            eventually(lambda: refuses_connections(port))
            connection.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 2\r\n\r\n{}")
            assert connection.recv(64).startswith(b"HTTP/1.1 503 ")
        assert running.process.wait(60) == 0


def refuses_connections(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == errno.ECONNREFUSED


@pytest.mark.timing
def test_threat_20_a_second_sigterm_ends_the_server_within_a_second(tiny_model_path: Path) -> None:
    with running_server(tiny_model_path, "--kv-cache-memory", "4MiB", "--max-num-seqs", "4") as running:
        children = running.children()
        with running.http.stream("POST", "/v1/completions", json=ENDLESS) as response:
            lines = response.iter_lines()
            next(lines)
            running.process.terminate()
            eventually(lambda: running.http.get("/readyz").status_code == 503)
            time.sleep(SAME_SIGNAL_SECONDS)
            running.process.terminate()
            began = time.monotonic()
            events = [line for line in lines if line]
        assert events[-1] == "data: [DONE]"
        assert running.process.wait(60) == 0
        assert time.monotonic() - began < 1.2
        assert not any(map(is_alive, children))


def failed_start(*arguments: str) -> str:
    """Return the error output of a start that fails, which must be one line."""
    finished = subprocess.run(
        [sys.executable, "-m", "caravan", "serve", "--port", "0", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert finished.returncode in (1, 2)
    assert finished.stdout == ""
    assert finished.stderr.count("\n") == 1, finished.stderr
    return finished.stderr


def test_a_missing_model_file_ends_the_command_with_one_line() -> None:
    assert "There is no file or folder /no/such.gguf" in failed_start("/no/such.gguf")


def test_threat_19_a_truncated_model_file_ends_the_command_with_one_line(tmp_path: Path) -> None:
    path = tmp_path / "cut.gguf"
    write_tiny_llama(path)
    path.write_bytes(path.read_bytes()[:-10_000])
    assert f"{path} is cut off" in failed_start(str(path))


def test_an_invalid_model_file_ends_the_command_with_one_line(tmp_path: Path) -> None:
    path = tmp_path / "text.gguf"
    path.write_text("not a model")
    assert f"{path} is not a GGUF file" in failed_start(str(path))


def test_threat_19_weights_that_are_not_finite_end_the_command_with_one_line(tmp_path: Path) -> None:
    path = tmp_path / "nan.gguf"
    write_tiny_llama(path, change=lambda tensors: tensors["blk.0.attn_q.weight"][0].fill(float("nan")))
    assert "blk.0.attn_q.weight holds values that are not finite" in failed_start(str(path))


def test_an_unsupported_architecture_ends_the_command_with_one_line(tmp_path: Path) -> None:
    path = tmp_path / "bert.gguf"
    write_tiny_llama(path, metadata={"general.architecture": "bert"})
    assert "is a model of kind 'bert'; supported are llama" in failed_start(str(path))


def test_an_invalid_chat_template_ends_the_command_with_one_line(tiny_model_path: Path, tmp_path: Path) -> None:
    template = tmp_path / "chat.jinja"
    assert "chat.jinja" in failed_start(str(tiny_model_path), "--chat-template", str(template))
    template.write_text("{% if %}")
    assert "chat template cannot be used" in failed_start(str(tiny_model_path), "--chat-template", str(template))


def test_a_chat_template_that_drops_user_messages_ends_the_command_with_one_line(
    tiny_model_path: Path, tmp_path: Path
) -> None:
    template = tmp_path / "chat.jinja"
    template.write_text("{% for message in messages %}{{ message.role }}: {{ message.text }}{% endfor %}")
    assert "drops the text of user messages" in failed_start(str(tiny_model_path), "--chat-template", str(template))


def test_contradictory_limits_end_the_command_with_one_line(tiny_model_path: Path) -> None:
    assert "Lower --max-model-len" in failed_start(str(tiny_model_path), "--kv-cache-memory", "64KiB")
    assert "trained for 512 tokens" in failed_start(str(tiny_model_path), "--max-model-len", "513")


def test_a_port_in_use_ends_the_command_with_one_line(tiny_model_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert f"Cannot listen on 127.0.0.1:{port}" in failed_start(str(tiny_model_path), "--port", port)


def test_an_invalid_option_ends_the_command_with_one_line(tiny_model_path: Path) -> None:
    assert failed_start(str(tiny_model_path), "--port", "x").startswith("Invalid value 'x' for --port: it ")


def test_one_request_of_a_key_does_not_wait_for_200_requests_of_another(tiny_model_path: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys.txt"
    keys.write_text("heavy: secret-of-heavy\nlight: secret-of-light\n")
    ended: list[str] = []

    def ask(http: httpx.Client, name: str) -> None:
        body = LONG | {"prompt": f"{name} {len(ended)}"}
        headers = {"authorization": f"Bearer secret-of-{name}"}
        assert http.post("/v1/completions", json=body, headers=headers).status_code == 200
        ended.append(name)

    with (
        running_server(tiny_model_path, "--max-num-seqs", "2", "--api-key-file", str(keys)) as running,
        httpx.Client(base_url=running.url, timeout=60, trust_env=False, limits=httpx.Limits()) as http,
        ThreadPoolExecutor(201) as pool,
    ):
        for _ in range(200):
            pool.submit(ask, http, "heavy")
        running.http.headers["authorization"] = "Bearer secret-of-heavy"
        eventually(lambda: running.metric("num_requests_waiting") >= 120)
        before = len(ended)
        ask(http, "light")
        num_between = len(ended) - 1 - before
        running.process.kill()  # nobody waits for the others
    assert num_between < 60  # first come, first served would let it end as one of the last
