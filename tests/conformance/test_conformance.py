"""Every rule of the kit holds for our own server, with the default model and a key; and the kit can say no."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import httpx
import pytest

from tests.conformance.__main__ import all_rules
from tests.conformance.report import Rule, judge, markdown, rules_of, summary
from tests.conformance.rules import clients
from tests.conformance.target import Target
from tests.support.running_server import running_server

pytestmark = pytest.mark.real_model

KEY = "sesame-open"
PAGE = Path(__file__).parents[2] / "docs/clients.md"


class Recording:
    """Runs rules, and keeps which fields each of them sent to which routes with success."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.sent: dict[Rule, set[tuple[str, str]]] = {}  # (route, field); the field is empty for a GET
        self._now: set[tuple[str, str]] = set()
        target.http.event_hooks["response"].append(self._record)

    def run(self, rule: Rule) -> None:
        """Check a rule."""
        self._now = set()
        rule.check(self.target)
        self.sent[rule] = self._now

    def _record(self, response: httpx.Response) -> None:
        if response.status_code != httpx.codes.OK:
            return
        path, content = response.request.url.path, response.request.content
        self._now.add((path, ""))
        for name, value in json.loads(content or b"{}").items():
            nested = value if name == "stream_options" else ()
            self._now |= {(path, f"{name}.{inner}" if inner else name) for inner in nested or ("",)}


@pytest.fixture(scope="module")
def recording(real_model_path: Path) -> Iterator[Recording]:
    options = ["--served-model-name", "smollm2", "--max-model-len", "2048", "--api-key", KEY]
    with running_server(real_model_path, *options) as running:
        target = Target(running.url, KEY)
        yield Recording(target)
        target.close()


@pytest.mark.parametrize("rule", all_rules(), ids=lambda rule: f"{rule.group}: {rule.name}")
def test_our_server_keeps(rule: Rule, recording: Recording) -> None:
    recording.run(rule)


@pytest.mark.parametrize("module", clients.MODULES, ids=lambda module: module.__name__.rpartition(".")[2])
def test_the_guide_for_clients_lists_what_their_rules_send(module: ModuleType, recording: Recording) -> None:
    rules = rules_of(module)
    for rule in rules:
        if rule not in recording.sent:  # only some tests run
            recording.run(rule)
    sent = {one for rule in rules for one in recording.sent[rule]}
    routes = ", ".join(f"`{route}`" for route in sorted({route for route, _ in sent}))
    fields = ", ".join(f"`{field}`" for field in sorted({field for _, field in sent} - {"", "model"}))
    row = f"| {rules[0].group} | {routes} | {fields} |"
    section = PAGE.read_text("utf-8").partition("\n## Requests\n")[2].partition("\n## ")[0]
    found = re.findall(rf"^\| {re.escape(rules[0].group)} \|.*$", section, re.MULTILINE)
    assert found == [row], f"docs/clients.md needs this row: {row}"


def test_names_of_rules_are_sentences_and_differ() -> None:
    names = [(rule.group, rule.name) for rule in all_rules()]
    assert len(set(names)) == len(names) >= 180
    assert all(name.endswith(".") and group for group, name in names)


def test_a_rule_that_does_not_hold_is_reported_with_its_reason(recording: Recording) -> None:
    def breaks(_: Target) -> None:
        raise AssertionError("a | b")

    reported: list[object] = []
    rules = [Rule("G", "Holds.", lambda _: None), Rule("G", "Breaks.", breaks)]
    verdicts = judge(rules, recording.target, reported.append)
    assert reported == verdicts
    assert summary(verdicts) == [("G", 1, 2)]
    assert "| G | Breaks. | AssertionError: a \\| b |" in markdown("Some server", verdicts)
