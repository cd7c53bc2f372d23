"""Every exit code that docs/command-line.md lists occurs, and the page has every command."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from caravan.cli.main import make_app
from tests.support.http_server import QuietHandler, serving

pytestmark = pytest.mark.slow

PAGE = (Path(__file__).parents[2] / "docs" / "command-line.md").read_text()
NOWHERE = "http://127.0.0.1:9"
CASES: dict[int, list[list[str]]] = {
    0: [["--version"], ["--help"], ["serve", "--help"], ["list"]],
    1: [
        ["serve", "/no/such.gguf"],
        ["pull", "/no/such.gguf"],
        ["inspect", "/no/such.gguf"],
        ["plan", "/no/such.gguf"],
        ["rm", "--yes", "org/none"],
        ["chat", "--url", NOWHERE],
        ["top", "--url", NOWHERE],
        ["explain", "cmpl-1", "--url", NOWHERE],
        ["bench", NOWHERE],
    ],
    2: [
        [],
        ["srve"],
        ["serve", "--prot", "1"],
        ["serve", "--port", "x"],
        ["serve", "--host", "0.0.0.0"],
        ["serve", "--config", "/no/such.yaml"],
        ["plan", "--dtype", "float16"],
        ["plan", "--device", "h200", "--memory", "3GiB"],
        ["rm"],
        ["explain"],
        ["chat", "--temperature", "3"],
        ["bench", NOWHERE, "--rate", "1", "--concurrency", "2"],
    ],
}


def caravan(words: list[str], **variables: str) -> "subprocess.CompletedProcess[str]":
    environ = {name: value for name, value in os.environ.items() if not name.startswith("CARAVAN_")} | variables
    command = [sys.executable, "-m", "caravan", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environ, stdin=subprocess.DEVNULL)


@pytest.mark.parametrize(("code", "words"), [(code, words) for code, cases in CASES.items() for words in cases])
def test_a_command_ends_with_the_code_of_the_page(code: int, words: list[str], tmp_path: Path) -> None:
    done = caravan(words, XDG_CACHE_HOME=str(tmp_path), HF_HUB_CACHE=str(tmp_path))
    assert done.returncode == code, done.stderr
    if code != 0:
        assert "Traceback" not in done.stderr
    if code == 1:
        assert done.stderr.count("\n") == 1


def test_a_wrong_variable_is_a_wrong_argument() -> None:
    done = caravan(["serve"], CARAVAN_PORT="x")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "--port" in done.stderr


def test_a_switch_that_is_not_given_leaves_the_variable_in_force() -> None:
    words = ["serve", "/no/such.gguf", "--host", "0.0.0.0"]
    assert caravan(words, CARAVAN_INSECURE="true").returncode == 1  # and not 2: the missing model is the first error


def test_an_interrupted_command_ends_with_130() -> None:
    class Silent(QuietHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            time.sleep(5)

    asked: list[str] = []
    with serving(Silent) as url:
        command = [sys.executable, "-m", "caravan", "chat", "--url", url]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            while not asked:
                assert process.poll() is None
                time.sleep(0.01)
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 130


def test_the_page_lists_the_codes_that_are_tested() -> None:
    assert [int(code) for code in re.findall(r"^\| (\d+) \|", PAGE, re.MULTILINE)] == [*CASES, 130]


def test_the_page_lists_every_command_with_its_help() -> None:
    root: Any = get_command(make_app())
    listed = dict(re.findall(r"^\| `caravan (\w+)[^`]*` \| ([^.]*\.)", PAGE, re.MULTILINE))
    assert list(listed) == list(root.commands)
    for name, help_text in listed.items():
        assert root.commands[name].help.startswith(help_text)


def test_the_chat_sends_the_key_of_the_variable() -> None:
    class Refusing(QuietHandler):
        def do_GET(self) -> None:
            keys.append(self.headers["authorization"])
            self.send_error(401)

    keys: list[str] = []
    with serving(Refusing) as url:
        assert caravan(["chat", "--url", url], CARAVAN_API_KEY="first, second").returncode == 1
    assert keys == ["Bearer first"]
