"""GrammarCheck: good grammars pass, bad ones and bombs are named within the limits."""

import time
from collections.abc import Iterator

import pytest
from llguidance import LLMatcher

from server.grammar_check import MAX_CHARACTERS, GrammarCheck
from server.openai.constraint import grammar_of_schema

NESTED = "(" * 5000 + "a" + ")*" * 5000


@pytest.fixture(scope="module")
def check() -> Iterator[GrammarCheck]:
    made = GrammarCheck(time_limit_seconds=2.0)
    yield made
    made.close()


@pytest.mark.parametrize(
    "grammar",
    [
        grammar_of_schema({"type": "object"}),
        grammar_of_schema(
            {"$defs": {"t": {"type": "object", "properties": {"t": {"$ref": "#/$defs/t"}}}}, "$ref": "#/$defs/t"}
        ),
        LLMatcher.grammar_from_regex("[a-z]+@[a-z]+"),
        LLMatcher.grammar_from_lark('start: "a" start?'),
    ],
)
def test_good_grammars_have_no_problem(check: GrammarCheck, grammar: str) -> None:
    assert check.problem(grammar) == ""


@pytest.mark.parametrize(
    ("grammar", "reason"),
    [
        (LLMatcher.grammar_from_regex("((("), "unclosed group"),
        (LLMatcher.grammar_from_lark("start: foo"), "unknown name"),
        (grammar_of_schema({"type": "frob"}), "Invalid type"),
        (grammar_of_schema({"type": "array", "uniqueItems": True}), "uniqueItems"),
        (grammar_of_schema({"type": "integer", "minimum": 3, "maximum": 2}), "minimum"),
        ("x" * (MAX_CHARACTERS + 1), "more than"),
    ],
)
def test_bad_grammars_are_named(check: GrammarCheck, grammar: str, reason: str) -> None:
    assert reason in check.problem(grammar)


@pytest.mark.parametrize(
    "grammar",
    [
        LLMatcher.grammar_from_regex("(((a{1,999}){1,999}){1,999}){1,999}b(((a{1,999}){1,999}){1,999}){1,999}"),
        LLMatcher.grammar_from_regex(NESTED),
        LLMatcher.grammar_from_lark("start: " + "(" * 50_000 + '"a"' + ")" * 50_000),
        grammar_of_schema({"$ref": "#"}),
        grammar_of_schema({"allOf": [{"$ref": "#/$defs/a"}], "$defs": {"a": {"allOf": [{"$ref": "#/$defs/a"}]}}}),
        grammar_of_schema({"type": "string", "pattern": "^(a|aa)+$", "minLength": 10**9}),
    ],
)
def test_threat_6_a_bomb_costs_a_bounded_time_and_the_next_is_checked(check: GrammarCheck, grammar: str) -> None:
    started = time.monotonic()
    check.problem(grammar)
    assert time.monotonic() - started < 10
    assert check.problem(LLMatcher.grammar_from_regex("[ab]")) == ""


def test_what_was_found_is_remembered(check: GrammarCheck) -> None:
    grammar = LLMatcher.grammar_from_regex("remember me")
    assert check.problem(grammar) == ""
    check.close()
    assert check.problem(grammar) == ""
    assert check.pids == []
