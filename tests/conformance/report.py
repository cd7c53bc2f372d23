"""Run rules and write down which held."""

import inspect
import time
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import NamedTuple

from tests.conformance.target import Target

MAX_REASON_CHARACTERS = 160


class Rule(NamedTuple):
    """One thing a server must do."""

    group: str
    name: str
    check: Callable[[Target], None]


class Verdict(NamedTuple):
    """Whether it did."""

    rule: Rule
    reason: str  # why not; empty if it did
    seconds: float


def rules_of(module: ModuleType) -> list[Rule]:
    """Return the rules of a module, in the order of its text; its docstring names the group."""
    group = (inspect.getdoc(module) or "").splitlines()[0].rstrip(".")
    functions = [
        function
        for name, function in vars(module).items()
        if inspect.isfunction(function) and function.__module__ == module.__name__ and not name.startswith("_")
    ]
    return [Rule(group, (inspect.getdoc(function) or "").splitlines()[0], function) for function in functions]


def judge(rules: Iterable[Rule], target: Target, on_verdict: Callable[[Verdict], object]) -> list[Verdict]:
    """Return the verdict on each rule, after passing each to `on_verdict`."""
    verdicts = []
    for rule in rules:
        started = time.monotonic()
        reason = ""
        try:
            rule.check(target)
        except Exception as error:  # after any error the rule does not hold
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:MAX_REASON_CHARACTERS]
        verdicts.append(Verdict(rule, reason, time.monotonic() - started))
        on_verdict(verdicts[-1])
    return verdicts


def summary(verdicts: list[Verdict]) -> list[tuple[str, int, int]]:
    """Return each group with how many of its rules held and how many it has."""
    groups = dict.fromkeys(verdict.rule.group for verdict in verdicts)
    of_group = {group: [v for v in verdicts if v.rule.group == group] for group in groups}
    return [(group, sum(not v.reason for v in of_group[group]), len(of_group[group])) for group in groups]


def markdown(title: str, verdicts: list[Verdict]) -> str:
    """Return a section with a table of the groups and the rules that did not hold."""
    num_held = sum(not verdict.reason for verdict in verdicts)
    lines = [
        f"## {title}",
        "",
        f"{num_held} of {len(verdicts)} rules.",
        "",
        "| group | held | rules |",
        "|---|---|---|",
    ]
    lines += [f"| {group} | {held} | {num} |" for group, held, num in summary(verdicts)]
    broken = [verdict for verdict in verdicts if verdict.reason]
    if broken:
        lines += ["", "| group | rule that did not hold | what came |", "|---|---|---|"]
        lines += [f"| {v.rule.group} | {v.rule.name} | {_cell(v.reason)} |" for v in broken]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")
