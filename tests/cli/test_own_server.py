"""A chat without a server: it starts one, which ends with it."""

import os
import signal
import socket
import subprocess
import sys
import threading
from importlib import import_module
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from caravan.cli.attached_server import end_with_input
from caravan.cli.main import make_app
from caravan.cli.own_server import MAX_NUM_SEQS, ServerFailed, own_server, server_environment
from tests.support.http_server import QuietHandler, serving
from tests.support.running_server import children_of, is_alive
from tests.support.waiting import eventually

pytestmark = pytest.mark.slow


def chat(words: list[str], typed: str, folder: Path, **variables: str) -> "subprocess.CompletedProcess[str]":
    environ = {name: value for name, value in os.environ.items() if not name.startswith("CARAVAN_")}
    environ |= {"TMPDIR": str(folder)} | variables
    command = [sys.executable, "-m", "caravan", "chat", *words]
    return subprocess.run(command, input=typed, capture_output=True, text=True, check=False, env=environ, timeout=120)


def test_a_chat_starts_a_server_for_its_model_and_stops_it(tiny_model_path: Path, tmp_path: Path) -> None:
    done = chat(
        [str(tiny_model_path), "--max-tokens", "5", "--seed", "1"],
        "hello\nagain\n",
        tmp_path,
        CARAVAN_PORT="1",  # of a server for others
        CARAVAN_API_KEY="of-the-other-server",
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith(f"Starting {tiny_model_path} ...\n")
    assert done.stdout.endswith("\n")
    assert [*tmp_path.iterdir()] == []


def test_a_server_that_cannot_start_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "broken.gguf").write_bytes(b"GGUF")
    done = chat([f"{tmp_path}/broken.gguf"], "hello\n", tmp_path)
    assert done.returncode == 1
    starting, failure = done.stderr.splitlines()
    assert starting == f"Starting {tmp_path}/broken.gguf ..."
    assert failure.startswith(f"Cannot serve {tmp_path}/broken.gguf: ")


def test_a_server_that_ends_without_a_word_is_named() -> None:
    with pytest.raises(ServerFailed, match=r"^The server ended with status 3\.$"), own_server("m", ("-c", "exit(3)")):
        pass


def test_a_server_that_does_not_stop_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    program = (
        "import signal, socket, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "with socket.socket(socket.AF_UNIX) as listener:\n"
        "    listener.bind(sys.argv[3]); listener.listen(); time.sleep(60)\n"
    )
    monkeypatch.setattr("caravan.cli.own_server.STOP_SECONDS", 0.1)
    with own_server("m", ("-c", program)) as path:
        assert path.exists()
    assert not path.parent.exists()


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
def test_a_signal_that_ends_the_chat_stops_the_server_and_removes_its_folder(number: signal.Signals) -> None:
    program = (
        "import socket, sys\n"
        "with socket.socket(socket.AF_UNIX) as listener:\n"
        "    listener.bind(sys.argv[3]); listener.listen(); sys.stdin.read()\n"
    )
    paths: list[Path] = []

    def wait_for_signal() -> None:
        with own_server("m", ("-c", program)) as path:
            paths.append(path)
            try:
                signal.raise_signal(number)
            finally:
                signal.raise_signal(number)  # does not interrupt cleaning up

    with pytest.raises(SystemExit) as ended:
        wait_for_signal()
    (path,) = paths
    assert ended.value.code == 128 + number
    assert not path.parent.exists()
    assert signal.getsignal(number) is signal.SIG_DFL


def test_a_signal_that_the_chat_ignores_remains_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        program = "import os, signal; os.kill(os.getppid(), signal.SIGHUP); exit(3)"
        with pytest.raises(ServerFailed), own_server("m", ("-c", program)):
            pass
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_server_ends_when_the_chat_is_killed(tiny_model_path: Path, tmp_path: Path) -> None:
    program = (
        "import sys, time\n"
        "from caravan.cli.own_server import own_server\n"
        "with own_server(sys.argv[1]) as path:\n"
        "    print(path, flush=True); time.sleep(60)\n"
    )
    command = [sys.executable, "-c", program, str(tiny_model_path)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=os.environ | {"TMPDIR": str(tmp_path)}
    ) as owner:
        assert owner.stdout is not None
        path = owner.stdout.readline().strip()
        with httpx.Client(transport=httpx.HTTPTransport(uds=path), base_url="http://localhost") as http:
            assert http.get("/v1/models").json()["data"][0]["id"] == "tiny"
        (server,) = children_of(owner.pid)
        owner.kill()
    eventually(lambda: not is_alive(server))
    eventually(lambda: not Path(path).exists())


def test_options_of_the_model_reach_the_server_and_those_of_other_servers_do_not() -> None:
    given = {"PATH": "/bin", "CARAVAN_DTYPE": "float32", "caravan_port": "1", "CARAVAN_API_KEY_FILE": "keys"}
    environ = server_environment(given)
    assert environ == {"PATH": "/bin", "CARAVAN_DTYPE": "float32", "CARAVAN_MAX_NUM_SEQS": str(MAX_NUM_SEQS)}
    assert server_environment({"CARAVAN_MAX_NUM_SEQS": "9"}) == {"CARAVAN_MAX_NUM_SEQS": "9"}


@pytest.mark.parametrize("variable", ["MODELS", "MODELS_MEMORY", "ENGINES", "REMOTE_RANKS"])
def test_options_that_one_local_model_cannot_have_do_not_reach_the_server(variable: str) -> None:
    environ = server_environment({f"CARAVAN_{variable}": "1"})
    assert environ == {"CARAVAN_MAX_NUM_SEQS": str(MAX_NUM_SEQS)}


def test_a_process_gets_sigterm_when_its_input_ends() -> None:
    received = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: received.set())
    reading, writing = os.pipe()
    try:
        thread = threading.Thread(target=end_with_input, args=(reading,))
        thread.start()
        os.write(writing, b"ignored")
        assert not received.wait(0.05)
        os.close(writing)
        thread.join(60)
        assert received.wait(60)
    finally:
        signal.signal(signal.SIGTERM, before)
        os.close(reading)


def test_with_an_address_no_server_is_started(tmp_path: Path) -> None:
    done = chat(["some-model", "--url", "http://127.0.0.1:9"], "hello\n", tmp_path)
    assert (done.returncode, done.stderr) == (
        1,
        "No server answers at http://127.0.0.1:9. Start one with `caravan serve`.\n",
    )


def answering(status: int, body: bytes) -> type[QuietHandler]:
    class Answering(QuietHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    return Answering


@pytest.mark.parametrize(("model", "is_used"), [(None, True), ("served", True), ("another", False)])
def test_a_server_at_the_default_address_is_used_if_it_has_the_model(
    model: str | None, is_used: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = import_module("caravan.cli.chat")
    used: list[str] = []

    def use(name: str, *_: object, **__: object) -> int:
        used.append(name)
        return 0

    monkeypatch.setattr("caravan.cli.terminal_chat.run_chat", use)
    monkeypatch.setattr(module, "_chat_with_own_server", use)
    with serving(answering(200, b'{"data": [{"id": "served"}]}')) as url:
        monkeypatch.setattr(module, "DEFAULT_URL", url)
        assert CliRunner().invoke(make_app(), ["chat", *([model] if model else [])]).exit_code == 0
        assert used == [url if is_used else "another"]


@pytest.mark.parametrize(("status", "body"), [(404, b"no such page"), (200, b"<html>"), (200, b"{}"), (500, b"")])
def test_another_program_at_the_default_address_is_not_used(
    status: int, body: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[str] = []
    module = import_module("caravan.cli.chat")
    monkeypatch.setattr(module, "_chat_with_own_server", lambda model, _: used.append(model))
    with serving(answering(status, body)) as url:
        monkeypatch.setattr(module, "DEFAULT_URL", url)
        assert CliRunner().invoke(make_app(), ["chat", "some-model"]).exit_code == 0
    assert used == ["some-model"]


def test_a_silent_program_at_the_default_address_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[str] = []
    module = import_module("caravan.cli.chat")
    monkeypatch.setattr(module, "_chat_with_own_server", lambda model, _: used.append(model))
    monkeypatch.setattr("caravan.cli.client._LOOKUP_TIMEOUT_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(module, "DEFAULT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert CliRunner().invoke(make_app(), ["chat", "some-model"]).exit_code == 0
    assert used == ["some-model"]


@pytest.mark.parametrize("status", [401, 403])
def test_a_server_at_the_default_address_that_refuses_the_key_is_an_error(
    status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(answering(status, b'{"error": {"message": "Wrong key."}}')) as url:
        monkeypatch.setattr(import_module("caravan.cli.chat"), "DEFAULT_URL", url)
        done = CliRunner().invoke(make_app(), ["chat"])
    assert (done.exit_code, done.stderr) == (1, "Wrong key.\n")
