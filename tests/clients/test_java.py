"""Java's own HTTP client, which Spring AI, LangChain4j and others send their requests with."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.running_server import running_server

pytestmark = pytest.mark.slow

SOURCE = Path(__file__).with_name("JavaClient.java")


def java_with_compiler() -> str:
    """Return the command that runs a source file; skips the test where there is none."""
    java = shutil.which("java")
    if java is None:
        pytest.skip("There is no Java.")
    modules = subprocess.run([java, "--list-modules"], capture_output=True, text=True, check=False).stdout
    if "jdk.compiler" not in modules:
        pytest.skip("This Java is a runtime without a compiler; install default-jdk-headless.")
    return java


def test_threat_26_java_s_client_gets_its_answers_though_it_offers_an_upgrade(
    tiny_model_path: Path, tmp_path: Path
) -> None:
    java = java_with_compiler()
    with running_server(tiny_model_path, "--kv-cache-memory", "4MiB") as server:
        command = [java, f"-Djava.io.tmpdir={tmp_path}", str(SOURCE), server.url]
        finished = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert finished.returncode == 0, finished.stderr
    answers = [line.split(" ", 3) for line in finished.stdout.splitlines()]
    names = [f"{kind}-{number}" for number in range(5) for kind in ("whole", "stream")]
    assert [name for name, *_ in answers] == names + [f"async-{number}" for number in range(8)]
    for name, status, version, body in answers:
        assert (status, version) == ("200", "HTTP_1_1"), (name, body)
        kind, _, number = name.partition("-")
        if kind == "stream" or (kind == "async" and int(number) % 2 == 1):
            assert body.rstrip("\\n").endswith("data: [DONE]")
            body = body.partition("\\n")[0].removeprefix("data: ")
        assert json.loads(body.removesuffix("\\n"))["object"].startswith("chat.completion")
