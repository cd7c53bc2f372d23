"""The programs of the workers, run in the process of the test: what they reply to each line."""

import contextlib
import io
import json
import os
import resource
import signal
import sys
from collections.abc import Callable
from datetime import datetime
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from llguidance import LLMatcher

from caravan.server.sandbox import grammar_worker, template_worker
from caravan.server.sandbox.worker_process import MEMORY_EXIT_STATUS

TIME_LIMIT_SECONDS, MEMORY_LIMIT_BYTES, NICENESS = 0.5, 2**30, 5

Run = Callable[..., list[dict[str, str]]]


class Ended(Exception):
    """The program has ended its process."""


class Limits:
    """What a program asks of its process."""

    def __init__(self) -> None:
        self.niceness = 0
        self.memory_bytes = 0
        self.timers: list[float] = []
        self.ignored: list[int] = []
        self.exit_status: int | None = None

    def end(self, status: int) -> None:
        self.exit_status = status
        raise Ended


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> Limits:
    made = Limits()
    monkeypatch.setattr(os, "nice", lambda niceness: setattr(made, "niceness", niceness))
    monkeypatch.setattr(os, "_exit", made.end)
    monkeypatch.setattr(signal, "signal", lambda number, handler: made.ignored.append(number))
    monkeypatch.setattr(signal, "setitimer", lambda timer, seconds: made.timers.append(seconds))
    monkeypatch.setattr(resource, "setrlimit", lambda kind, values: setattr(made, "memory_bytes", values[0]))
    return made


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, limits: Limits) -> Run:
    def replies(program: ModuleType, *lines: Any) -> list[dict[str, str]]:
        written = io.BytesIO()
        monkeypatch.setattr(sys, "argv", ["worker", str(TIME_LIMIT_SECONDS), str(MEMORY_LIMIT_BYTES), str(NICENESS)])
        text = "".join(json.dumps(line) + "\n" for line in lines)
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(text.encode())))
        with monkeypatch.context() as patched:
            patched.setattr(sys, "stdout", SimpleNamespace(buffer=written))
            with contextlib.suppress(Ended):
                program.main()
        return [json.loads(line) for line in written.getvalue().splitlines()]

    return replies


def template(run: Run, source: str, *contexts: dict[str, Any], max_characters: int = 1000) -> list[dict[str, str]]:
    return run(template_worker, {"source": source, "max_characters": max_characters}, *contexts)


def test_a_worker_limits_its_process_before_the_first_line(run: Run, limits: Limits) -> None:
    assert run(grammar_worker) == []
    assert (limits.niceness, limits.memory_bytes) == (NICENESS, MEMORY_LIMIT_BYTES)
    assert limits.ignored == [signal.SIGTERM]
    assert limits.timers == []


def test_each_grammar_has_the_time_limit_and_a_verdict(run: Run, limits: Limits) -> None:
    texts = [
        LLMatcher.grammar_from_regex("[a-z]+"),
        LLMatcher.grammar_from_lark("start: nothing_of_that_name"),
        LLMatcher.grammar_from_json_schema({"type": "array", "uniqueItems": True}),
        LLMatcher.grammar_from_regex("[^\\s\\S]"),
    ]
    valid, unknown, ignored, empty = run(grammar_worker, *({"grammar": text} for text in texts))
    assert valid == {}
    assert "unknown name" in unknown["failed"]
    assert "uniqueItems" in ignored["failed"]
    assert empty["failed"]
    assert limits.timers == [TIME_LIMIT_SECONDS, 0] * 4


@pytest.mark.parametrize("program", [grammar_worker, template_worker])
def test_a_worker_that_runs_out_of_memory_ends_with_its_own_status(
    program: ModuleType, run: Run, limits: Limits, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(grammar_worker, "_check", exhausted)
    monkeypatch.setattr(template_worker, "_render", exhausted)
    run(program, {"grammar": "", "source": "", "max_characters": 9}, {})
    assert limits.exit_status == MEMORY_EXIT_STATUS


def test_a_template_that_runs_out_of_memory_while_it_is_compiled_ends_the_worker(
    run: Run, limits: Limits, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(_: str) -> None:
        raise MemoryError

    monkeypatch.setattr(template_worker, "compile_template", exhausted)
    assert template(run, "") == []
    assert limits.exit_status == MEMORY_EXIT_STATUS


def test_a_template_is_compiled_once_and_rendered_for_each_line(run: Run, limits: Limits) -> None:
    replies = template(run, "{{ name }}{% if name == 'b' %}!{% endif %}", {"name": "a"}, {"name": "b"})
    assert replies == [{"text": ""}, {"text": "a"}, {"text": "b!"}]
    assert limits.timers == [TIME_LIMIT_SECONDS, 0] * 3


def test_a_template_that_does_not_compile_is_the_only_reply(run: Run) -> None:
    (reply,) = template(run, "{% if %}", {})
    assert reply["failed"].startswith("TemplateSyntaxError: ")


@pytest.mark.parametrize(
    ("source", "reply"),
    [
        ("{{ {'a': '<é>'} | tojson }}", {"text": '{"a": "<é>"}'}),
        ("{% generation %}x{{ 1 + 1 }}{% endgeneration %}", {"text": "x2"}),
        ("{{ strftime_now('%Y') }}", {"text": str(datetime.now().year)}),
        ("{{ raise_exception('no') }}", {"raised": "no"}),
        ("{{ 1 / 0 }}", {"failed": "ZeroDivisionError: division by zero"}),
        ("{{ 'a' * 1001 }}", {"failed": "the text has 1001 characters, more than 1000"}),
        ("{{ '\\ud800' }}", {"failed": "the text has a lone surrogate, which is not a character"}),
    ],
)
def test_a_line_is_rendered_in_the_environment_of_chat_templates(run: Run, source: str, reply: dict[str, str]) -> None:
    assert template(run, source, {}) == [{"text": ""}, reply]


def test_a_template_that_raises_memory_error_ends_the_worker(run: Run, limits: Limits) -> None:
    assert template(run, "{{ 'a' * (10 ** 18) }}", {}) == [{"text": ""}]
    assert limits.exit_status == MEMORY_EXIT_STATUS
