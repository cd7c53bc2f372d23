"""`caravan rank`: wrong options are one line, and it waits for an engine as long as it takes."""

import socket
import subprocess
import threading
from pathlib import Path

import pytest
from typer.testing import CliRunner

from caravan.cli import rank as module
from caravan.cli.main import make_app
from caravan.scheduler.rank_options import REFUSED, RankOptions
from caravan.scheduler.rank_secret import admit
from tests.support.joining_ranks import SECRET, free_address, secret_file


def run(*words: str) -> tuple[int, str]:
    """Return the exit code and what was written."""
    done = CliRunner().invoke(make_app(), ["rank", *words], prog_name="caravan")
    return done.exit_code, done.output


@pytest.mark.parametrize(
    ("address", "secret", "sentence"),
    [
        ("nowhere", SECRET, "nowhere is not HOST:PORT"),
        ("127.0.0.1:1", b"short", "has 5 bytes; it must have at least 16"),
    ],
)
def test_wrong_options_are_one_line(
    tiny_model_path: Path, tmp_path: Path, address: str, secret: bytes, sentence: str
) -> None:
    file = secret_file(tmp_path, secret)
    code, output = run(str(tiny_model_path), "--join", address, "--secret-file", str(file))
    assert code == 2
    assert sentence in output
    assert output.count("\n") == 1


def test_it_waits_for_an_engine_runs_ranks_and_ends_when_one_is_refused(
    tiny_model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PAUSE_SECONDS", 0.05)
    address, file = free_address(), secret_file(tmp_path)
    host, _, port = address.rpartition(":")
    codes = [0, -9, REFUSED]
    started = threading.Event()

    def run_rank(*_: object) -> int:
        started.set()
        return codes.pop(0)

    def listen() -> None:
        with socket.create_server((host, int(port))) as listener:
            for _ in range(3):
                connection, _ = listener.accept()
                with connection:
                    admit(connection, SECRET)

    monkeypatch.setattr(module, "run", run_rank)
    timer = threading.Timer(0.3, listen)
    timer.start()
    code, output = run(str(tiny_model_path), "--join", address, "--secret-file", str(file))
    timer.join()
    assert (code, codes) == (1, [])
    assert output.splitlines() == [
        f"Waiting for an engine at {address} (Connection refused).",
        *[f"The rank has ended. The next one joins at {address}."] * 2,
    ]


def test_another_secret_ends_it(tiny_model_path: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(b"caravan rank 2\r\n" + bytes(32))
                connection.recv(64)
                connection.sendall(bytes(32))  # a refusal

        thread = threading.Thread(target=answer)
        thread.start()
        code, output = run(str(tiny_model_path), "--join", address, "--secret-file", str(secret_file(tmp_path)))
        thread.join()
    assert code == 1
    assert output == f"{address}: The engine there has another secret. Use the same file on both hosts.\n"


def test_the_process_of_a_rank_gets_the_connection_and_ends_with_the_command(
    tiny_model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = RankOptions(model_path=str(tiny_model_path), address="host:1")
    ours, theirs = socket.socketpair()
    with ours, theirs:
        monkeypatch.setattr(
            module, "PROGRAM", ("-c", "import os, sys; os.write(int(sys.argv[1]), b'here'); sys.exit(3)")
        )
        assert module.run(theirs, options) == 3
        assert ours.recv(4) == b"here"
        monkeypatch.setattr(module, "PROGRAM", ("-c", "import sys; sys.stdin.read()"))
        processes: list[subprocess.Popen[bytes]] = []

        def interrupted(process: "subprocess.Popen[bytes]", timeout: float | None = None) -> int:
            processes.append(process)
            if len(processes) == 1:
                raise KeyboardInterrupt
            return wait(process, timeout)

        wait = subprocess.Popen.wait
        monkeypatch.setattr(subprocess.Popen, "wait", interrupted)
        with pytest.raises(KeyboardInterrupt):
            module.run(theirs, options)
        assert processes[0].returncode == -9
