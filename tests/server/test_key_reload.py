"""SIGHUP at a server with a file of keys: new keys are accepted, old ones refused, and a wrong file changes nothing."""

import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from caravan.server.http.api_keys import ApiKeys, KeyAttributes, WrongKeys
from tests.support.running_server import RunningServer, running_server
from tests.support.waiting import eventually

pytestmark = pytest.mark.slow

ANN, BOB = "key-of-ann", "key-of-bob"


def status(server: RunningServer, key: str) -> int:
    return server.http.get("/v1/models", headers={"x-api-key": key}).status_code


def test_a_hangup_reads_the_keys_again(
    tiny_model_path: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "keys.txt"
    file.write_text(f"ann: {ANN}\n")
    with running_server(tiny_model_path, "--api-key-file", str(file), "--kv-cache-memory", "4MiB") as server:
        assert (status(server, ANN), status(server, BOB)) == (200, 401)
        body = {"model": "tiny", "prompt": "hello", "max_tokens": 300, "ignore_eos": True, "stream": True}
        with server.http.stream("POST", "/v1/completions", json=body, headers={"x-api-key": ANN}) as response:
            lines = (line for line in response.iter_lines() if line)
            next(lines)
            for text in (f"bob: {BOB}\nbob: x\n", "# none\n"):
                file.write_text(text)
                server.process.send_signal(signal.SIGHUP)
                eventually(lambda: "The API keys stay as they are." in capfd.readouterr().err)
                assert (status(server, ANN), status(server, BOB)) == (200, 401)
            file.write_text(f"bob: {BOB}\n")
            server.process.send_signal(signal.SIGHUP)
            eventually(lambda: status(server, BOB) == 200)
            assert status(server, ANN) == 401
            assert [*lines][-1] == "data: [DONE]", "a request that was accepted continues"
        short = body | {"max_tokens": 2, "stream": False}
        assert server.http.post("/v1/completions", json=short, headers={"x-api-key": BOB}).status_code == 200
        metrics = server.http.get("/metrics", headers={"x-api-key": BOB}).text
        assert 'caravan_key_requests_total{key="bob",model_name="tiny"} 1.0' in metrics
        assert 'caravan_key_requests_total{key="ann",model_name="tiny"} 1.0' in metrics


def test_a_server_ends_with_its_terminal(tiny_model_path: Path, tmp_path: Path) -> None:
    (tmp_path / "keys.txt").write_text(f"ann: {ANN}\n")
    program = (  # a session of its own, whose terminal is the standard input
        "import fcntl, os, sys, termios\n"
        "os.setsid(); fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"
        "os.execv(sys.executable, [sys.executable, '-m', 'caravan', 'serve', *sys.argv[1:]])\n"
    )
    options = ["--api-key-file", f"{tmp_path}/keys.txt", "--kv-cache-memory", "4MiB", "--port", "0"]
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(tiny_model_path), *options],
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    os.close(theirs)
    assert process.stdout is not None
    try:
        url = next(line for line in process.stdout if line.startswith("Ready")).split()[1]
        process.send_signal(signal.SIGHUP)
        time.sleep(0.5)
        assert httpx.get(f"{url}/models", headers={"x-api-key": ANN}, trust_env=False).status_code == 200
        os.close(ours)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.stdout.close()


def test_names_and_digests_follow_the_keys() -> None:
    keys = ApiKeys({"ann": ANN})
    names, digests = keys.names, keys.digests
    keys.replace(ApiKeys({"bob": BOB}, {"bob": KeyAttributes(may_scrape=True)}))
    assert (list(names), list(digests)) == (["bob"], ["bob"])
    assert keys.find(ANN.encode()) is None
    with pytest.raises(WrongKeys, match="^No key has `scrape` any more, which needs a restart.$"):
        keys.replace(ApiKeys({"bob": BOB}))
    assert list(names) == ["bob"]
