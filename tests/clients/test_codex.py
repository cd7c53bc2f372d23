"""Codex CLI from npm runs whole sessions against our server, whose engine is scripted: it reads and writes files.

It gets a home of its own, an empty environment, a dummy key and no way out of this machine.
"""

import asyncio
import json
import shutil
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from caravan.server.openai.protocol.custom_input import arguments_of_input
from caravan.server.openai.tool_calls.call_format import HERMES
from caravan.server.sandbox.chat_template import ChatTemplate
from tests.server.openai.api import Api, open_api
from tests.support.answering_app import served
from tests.support.matching import accepts_text
from tests.support.scripted_model import answering
from tests.support.templates import QWEN

CODEX = Path(__file__).parents[2] / ".venv/npm/node_modules/.bin/codex"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed"),
    pytest.mark.skipif(
        not CODEX.exists(), reason="the npm package @openai/codex is not installed: make .venv/npm.stamp"
    ),
]
CONFIG = """\
model_provider = "caravan"
approval_policy = "never"
check_for_update_on_startup = false

[analytics]
enabled = false

[model_providers.caravan]
name = "Caravan"
base_url = "http://127.0.0.1:{port}/v1"
env_key = "CARAVAN_KEY"
wire_api = "responses"
request_max_retries = 0
stream_max_retries = 0
"""
SECONDS = 60


@pytest.fixture(scope="module")
def qwen() -> Iterator[ChatTemplate]:
    template = ChatTemplate(QWEN, "<s>", "</s>")
    yield template
    template.close()


@asynccontextmanager
async def codex_server(
    template: ChatTemplate, answers: Mapping[str, str], max_model_len: int = 400_000
) -> AsyncIterator[tuple[Api, int]]:
    """Serve a scripted model on a port of this machine."""
    script = answering(answers)
    opened = open_api(script, chat_template=template, max_model_len=max_model_len, aliases=("gpt-5.5",))
    async with opened as api, served(api.app) as (_, port):
        yield api, port


async def run_codex(folder: Path, port: int, model: str, prompt: str) -> list[dict[str, Any]]:
    """Run one session in a working folder; return the events that it prints."""
    home, work = folder / "home", folder / "work"
    home.mkdir()
    (home / "config.toml").write_text(CONFIG.format(port=port))
    # Its own sandbox needs features of the kernel that containers lack; it works in a temporary folder only.
    options = ("--skip-git-repo-check", "--json", "--dangerously-bypass-approvals-and-sandbox", "-C", str(work))
    closed = "http://127.0.0.1:9"
    environment = {
        "PATH": f"{Path(str(shutil.which('node'))).parent}:/usr/bin:/bin",
        "HOME": str(home),
        "CODEX_HOME": str(home),
        "CARAVAN_KEY": "dummy",
        "http_proxy": closed,
        "https_proxy": closed,
        "no_proxy": "127.0.0.1",
    }
    process = await asyncio.create_subprocess_exec(
        *(str(CODEX), "exec", "-m", model, *options, prompt),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=environment,
        cwd=work,
    )
    try:
        async with asyncio.timeout(SECONDS):
            output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return [json.loads(line) for line in output.decode().splitlines() if line.startswith("{")]


def completed_items(events: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [one["item"] for one in events if one["type"] == "item.completed" and one["item"]["type"] == kind]


def call(name: str, **arguments: Any) -> str:
    return HERMES.written([(name, json.dumps(arguments))])


async def test_a_session_reads_and_writes_files_with_its_shell(qwen: ChatTemplate, tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "work/notes.txt").write_text("the word is heron\n")
    answers = {
        "Copy the word.": f"I read it. {call('exec_command', cmd='cat notes.txt')}",
        "the word is heron": call("exec_command", cmd="printf heron > word.txt && echo it is written"),
        "it is written": "The word is copied.",
    }
    async with codex_server(qwen, answers) as (api, port):
        events = await run_codex(tmp_path, port, "fake", "Copy the word.")
        assert (tmp_path / "work/word.txt").read_text() == "heron"
        assert [item["text"].strip() for item in completed_items(events, "agent_message")] == [
            "I read it.",
            "The word is copied.",
        ]
        assert [item["exit_code"] for item in completed_items(events, "command_execution")] == [0, 0]
        (usage,) = [event["usage"] for event in events if event["type"] == "turn.completed"]
        assert usage["input_tokens"] == sum(len(prompt) for prompt, _, _ in api.engine.submitted)


async def test_a_session_writes_a_file_with_a_custom_tool_whose_grammar_is_enforced(
    qwen: ChatTemplate, tmp_path: Path
) -> None:
    (tmp_path / "work").mkdir()
    patch = "*** Begin Patch\n*** Add File: word.txt\n+heron\n*** End Patch\n"
    answers = {
        "Write the word.": HERMES.written([("apply_patch", arguments_of_input(patch))]),
        "word.txt\n": "It is written.",
    }
    async with codex_server(qwen, answers) as (api, port):
        events = await run_codex(tmp_path, port, "gpt-5.5", "Write the word.")
        assert (tmp_path / "work/word.txt").read_text() == "heron\n"
        assert [item["text"] for item in completed_items(events, "agent_message")] == ["It is written."]
        for grammar in api.engine.grammars:
            assert accepts_text(grammar, "It is written.")
            assert accepts_text(grammar, HERMES.written([("apply_patch", arguments_of_input(patch))]))
            assert not accepts_text(grammar, HERMES.written([("apply_patch", arguments_of_input("heron"))]))


async def test_a_prompt_that_does_not_fit_is_its_own_message(qwen: ChatTemplate, tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    async with codex_server(qwen, {"": "never"}, max_model_len=8192) as (api, port):
        events = await run_codex(tmp_path, port, "fake", "Say hello.")
        (failed,) = [event["error"]["message"] for event in events if event["type"] == "turn.failed"]
        assert "ran out of room in the model's context window" in failed
        assert api.engine.submitted == []
