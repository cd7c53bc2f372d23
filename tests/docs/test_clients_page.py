"""docs/clients.md: a section for each client, with settings that lead to what the tests of that client use."""

import re
from inspect import getdoc, getsource
from pathlib import Path
from types import ModuleType

import pytest

from caravan.server.settings import Settings
from tests.clients.examples import examples
from tests.conformance.rules import clients

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/clients.md").read_text("utf-8")
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))
# Clients without a module of rules, each with what tests it.
OTHER_CLIENTS = {
    "OpenAI's libraries": "tests/clients/openai_task.py",
    "LlamaIndex": "tests/clients/llama_index_task.py",
    "LiteLLM": "tests/clients/litellm_task.py",
    "Instructor": "tests/clients/instructor_task.py",
    "Codex CLI": "tests/clients/test_codex.py",
    "Claude Code": "tests/conformance/rules/claude_code.py",
    "Anthropic's library": "tests/server/messages/test_agent_session.py",
    "Ollama's clients": "tests/server/ollama/test_official_client.py",
    "Clients that lose their connection": "tests/server/resumption/test_resumed_serving.py",
    "Java": "tests/clients/JavaClient.java",
}
NOT_CLIENTS = {"Requests", "Values that mean no value", "Fields without effect", "Rejected fields"}
PLACE = re.compile(r"http://127\.0\.0\.1:8000([\w/]*)|--endpoint (/[\w/]+)|request_format=(/[\w/]+)")
MODULES = {(getdoc(module) or "").rstrip("."): module for module in clients.MODULES}


def section_of(client: str) -> str:
    """Return the section whose title begins with a client's name."""
    (found,) = [text for title, text in SECTIONS.items() if title.startswith(client)]
    return found


def shown_lines(text: str) -> list[str]:
    """Return the lines of a section that are to be copied: those of blocks, in fences or indented."""
    fenced = re.findall(r"^```\w+\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    indented = re.findall(r"^    .*$", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    return [line.strip() for line in ["\n".join(fenced), *indented] for line in line.splitlines()]


def test_every_client_has_a_section_and_every_section_a_test() -> None:
    names = [*MODULES, *OTHER_CLIENTS]
    for name in names:
        assert section_of(name).strip(), name
    for title in SECTIONS.keys() - NOT_CLIENTS:
        assert any(title.startswith(name) for name in names), title
    for path in OTHER_CLIENTS.values():
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("client", MODULES)
def test_the_settings_of_a_client_lead_to_the_routes_of_its_rules(client: str) -> None:
    module: ModuleType = MODULES[client]
    routes = re.findall(r'"(/(?:v1/)?[a-z_]+[a-z_/]*)"', getsource(module))
    places = ["".join(found) for found in PLACE.findall(section_of(client))]
    assert places, "the section names no address"
    for place in places:
        assert any(route.startswith(place.rstrip("/")) for route in routes), place


@pytest.mark.parametrize("title", SECTIONS)
def test_options_of_the_server_exist(title: str) -> None:
    for line in shown_lines(SECTIONS[title]):
        if line.startswith("caravan serve"):
            for option in re.findall(r"--([a-z-]+)", line):
                assert option.replace("-", "_") in Settings.model_fields, line


def test_every_example_in_python_is_one_that_the_clients_run() -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    assert blocks == [*examples().values()]
    assert len(blocks) == 7
    for block in blocks:
        assert "http://127.0.0.1:8000/v1" in block


def test_the_settings_of_the_ai_sdk_are_those_of_its_script() -> None:
    (block,) = re.findall(r"^```js\n(.*?)^```", section_of("Vercel's AI SDK"), re.MULTILINE | re.DOTALL)
    script = (ROOT / "tests/clients/ai_sdk.mjs").read_text("utf-8")
    assert block.replace('"http://127.0.0.1:8000/v1"', "`${process.argv[2]}/v1`") in script
