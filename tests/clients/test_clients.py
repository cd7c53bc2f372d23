"""Common client libraries, each with tasks that the default model completes under constraints.

They run in environments of their own, made by `make test`: most want another version of the openai package.
"""

import itertools
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.clients.busy_proxy import RETRY_AFTER_SECONDS, busy_proxy
from tests.clients.environments import CLIENTS, NEWER_CLIENTS, client_variables
from tests.clients.tasks import TOOLS, Bounded, City, GetTime
from tests.support.running_server import RunningServer, running_server

pytestmark = pytest.mark.real_model

ROOT = Path(__file__).parents[2]
OURS = Path(sys.executable)
LIBRARIES = {
    "openai 3": (OURS, "openai_task"),
    "openai 2": (CLIENTS, "openai_task"),
    "langchain": (CLIENTS, "langchain_task"),
    "llama_index": (CLIENTS, "llama_index_task"),
    "litellm": (CLIENTS, "litellm_task"),
    "instructor": (CLIENTS, "instructor_task"),
    "pydantic-ai": (NEWER_CLIENTS, "pydantic_ai_task"),
}


class Done(NamedTuple):
    """The output of a library's script, and the seconds before each retry."""

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
    with busy_proxy(server.url) as proxy:
        finished = subprocess.run(
            [python, "-m", f"tests.clients.{script}", server.url, proxy.url],
            cwd=ROOT,
            env=client_variables(),
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
    assert finished.returncode == 0, finished.stderr[-4000:]
    waits_seconds = [later - earlier for earlier, later in itertools.pairwise(proxy.requested_at_seconds)]
    return Done(json.loads(finished.stdout), waits_seconds)


def test_structured_output_keeps_to_its_schema(done: Done) -> None:
    assert done.answers["structured"]
    for answer in done.answers["structured"]:
        City.model_validate(answer, strict=True)


def test_a_stream_has_chunks_that_join_to_the_whole_text(done: Done) -> None:
    if "partials" in done.answers:  # instructor streams objects that grow
        *growing, last = done.answers["partials"]
        assert any(None in partial.values() for partial in growing)
        assert last == done.answers["structured"][0]
        return
    for chunks in done.answers["streams"]:
        assert len(chunks) > 3
        assert "".join(chunks) == done.answers["whole"]


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


def test_a_429_is_retried_after_the_seconds_of_retry_after(done: Done) -> None:
    assert done.answers["retried"] in (done.answers.get("whole"), done.answers["structured"][0])
    [wait_seconds] = done.waits_seconds
    assert wait_seconds >= RETRY_AFTER_SECONDS
