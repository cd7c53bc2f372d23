"""Client libraries people use, each with tasks for the default model that constraints make it complete.

They run in an environment of their own, made by `make test`: they want another version of the openai package.
"""

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.clients.busy_door import RETRY_AFTER_SECONDS, busy_door
from tests.clients.tasks import TOOLS, Bounded, City, GetTime
from tests.server.running_server import RunningServer, running_server

pytestmark = pytest.mark.real_model

ROOT = Path(__file__).parents[2]
OURS = Path(sys.executable)
THEIRS = Path(sys.prefix) / "clients/bin/python"
LIBRARIES = {
    "openai 3": (OURS, "openai_task"),
    "openai 2": (THEIRS, "openai_task"),
    "langchain": (THEIRS, "langchain_task"),
    "llama_index": (THEIRS, "llama_index_task"),
    "litellm": (THEIRS, "litellm_task"),
    "instructor": (THEIRS, "instructor_task"),
}
# No telemetry and no downloads; what would leave this machine all the same runs into a closed port.
ENVIRONMENT = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LANGSMITH_TRACING": "false",
    "ANONYMIZED_TELEMETRY": "false",
    "HF_HUB_OFFLINE": "1",
    "http_proxy": "http://127.0.0.1:9",
    "https_proxy": "http://127.0.0.1:9",
    "no_proxy": "127.0.0.1",
}


class Done(NamedTuple):
    """What a library's script printed, and how long after the refusal the library asked again, in seconds."""

    answers: dict[str, Any]
    waits_seconds: list[float]


@pytest.fixture(scope="module")
def server(real_model_path: Path) -> Iterator[RunningServer]:
    with running_server(real_model_path, "--max-model-len", "1024", "--served-model-name", "smollm2") as running:
        yield running


@pytest.fixture(scope="module", params=LIBRARIES)
def done(request: pytest.FixtureRequest, server: RunningServer) -> Done:
    python, script = LIBRARIES[request.param]
    assert python.exists(), "Run `make .venv/clients.stamp`."
    environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    with busy_door(server.url) as concurrency_limit:
        finished = subprocess.run(
            [python, "-m", f"tests.clients.{script}", server.url, concurrency_limit.url],
            cwd=ROOT,
            env=environment | ENVIRONMENT,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
    assert finished.returncode == 0, finished.stderr[-4000:]
    waits_seconds = [later - earlier for earlier, later in itertools.pairwise(concurrency_limit.asked_at_seconds)]
    return Done(json.loads(finished.stdout), waits_seconds)


def test_structured_output_keeps_to_its_schema(done: Done) -> None:
    assert done.answers["structured"]
    for answer in done.answers["structured"]:
        City.model_validate(answer, strict=True)


def test_a_stream_comes_in_pieces_that_join_to_the_whole_answer(done: Done) -> None:
    if "partials" in done.answers:  # instructor streams objects that grow
        *growing, last = done.answers["partials"]
        assert any(None in partial.values() for partial in growing)
        assert last == done.answers["structured"][0]
        return
    for pieces in done.answers["streams"]:
        assert len(pieces) > 3
        assert "".join(pieces) == done.answers["whole"]


def test_a_required_call_has_arguments_of_its_schema(done: Done) -> None:
    known: list[type[Bounded]] = [*TOOLS, City]
    tools = {tool.__name__: tool for tool in known}
    assert done.answers["required"]
    for call in done.answers["required"]:
        tools[call["name"]].model_validate(call["arguments"], strict=True)


def test_a_named_function_is_the_one_that_is_called(done: Done) -> None:
    if "named" not in done.answers:
        pytest.skip("instructor has one function in each request")
    assert {call["name"] for call in done.answers["named"]} == {GetTime.__name__}
    for call in done.answers["named"]:
        GetTime.model_validate(call["arguments"], strict=True)


def test_a_request_refused_as_too_much_is_asked_again_after_the_pause_it_was_told(done: Done) -> None:
    assert done.answers["retried"] in (done.answers.get("whole"), done.answers["structured"][0])
    [wait_seconds] = done.waits_seconds
    assert wait_seconds >= RETRY_AFTER_SECONDS
