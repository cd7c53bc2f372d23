"""Every rule of the kit holds for our own server, with the default model and a key; and the kit can say no."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conformance.__main__ import all_rules
from tests.conformance.report import Rule, judge, markdown, summary
from tests.conformance.target import Target
from tests.support.running_server import running_server

pytestmark = pytest.mark.real_model

KEY = "sesame-open"


@pytest.fixture(scope="module")
def target(real_model_path: Path) -> Iterator[Target]:
    options = ["--served-model-name", "smollm2", "--max-model-len", "2048", "--api-key", KEY]
    with running_server(real_model_path, *options) as running:
        target = Target(running.url, KEY)
        yield target
        target.close()


@pytest.mark.parametrize("rule", all_rules(), ids=lambda rule: f"{rule.group}: {rule.name}")
def test_our_server_keeps(rule: Rule, target: Target) -> None:
    rule.check(target)


def test_names_of_rules_are_sentences_and_differ() -> None:
    names = [(rule.group, rule.name) for rule in all_rules()]
    assert len(set(names)) == len(names) > 100
    assert all(name.endswith(".") and group for group, name in names)


def test_a_rule_that_does_not_hold_is_reported_with_its_reason(target: Target) -> None:
    def breaks(_: Target) -> None:
        raise AssertionError("a | b")

    reported: list[object] = []
    verdicts = judge([Rule("G", "Holds.", lambda _: None), Rule("G", "Breaks.", breaks)], target, reported.append)
    assert reported == verdicts
    assert summary(verdicts) == [("G", 1, 2)]
    assert "| G | Breaks. | AssertionError: a \\| b |" in markdown("Some server", verdicts)
