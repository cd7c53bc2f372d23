"""GrammarCheck: valid grammars pass; invalid and expensive ones are rejected within the limits."""

import asyncio
import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from llguidance import LLMatcher

from caravan.server.openai.structured_output.schema_grammar import grammar_of_schema
from caravan.server.sandbox.fair_executor import ExecutorFull
from caravan.server.sandbox.grammar_check import MAX_CHARACTERS, GrammarCheck
from caravan.server.sandbox.worker_pool import WorkerUnavailable
from caravan.server.sandbox.worker_process import MEMORY_EXIT_STATUS
from tests.support import scripted_worker


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
async def test_valid_grammars_are_accepted(check: GrammarCheck, grammar: str) -> None:
    assert await check.find_problem(grammar, "a") == ""


@pytest.mark.parametrize(
    ("grammar", "reason"),
    [
        (LLMatcher.grammar_from_regex("((("), "unclosed group"),
        (LLMatcher.grammar_from_lark("start: foo"), "unknown name"),
        (LLMatcher.grammar_from_json_schema({"type": "frob"}), "Invalid type"),
        (LLMatcher.grammar_from_json_schema({"type": "array", "uniqueItems": True}), "uniqueItems"),
        (LLMatcher.grammar_from_json_schema({"type": "integer", "minimum": 3, "maximum": 2}), "minimum"),
        ("x" * (MAX_CHARACTERS + 1), "more than"),
    ],
)
async def test_invalid_grammars_are_rejected_with_a_reason(check: GrammarCheck, grammar: str, reason: str) -> None:
    assert reason in await check.find_problem(grammar, "a")


@pytest.mark.slow
async def test_threat_6_a_grammar_over_the_time_limit_is_rejected_and_the_next_one_is_checked() -> None:
    names = [f"r{number}" for number in range(4000)]
    rules = [f'{name}: "{name}" /[a-f]{{{len(name)},9}}[0-9]+/' for name in names]  # a quarter of a second
    check = GrammarCheck(first_limit_seconds=0.02, time_limit_seconds=0.05)
    try:
        large = LLMatcher.grammar_from_lark("\n".join([f"start: {' | '.join(names)}", *rules]))
        assert "more than 0.05 s of processor time" in await check.find_problem(large, "a")
        assert await check.find_problem(LLMatcher.grammar_from_regex("[ab]"), "a") == ""
    finally:
        check.close()


async def test_verdicts_are_cached(check: GrammarCheck) -> None:
    grammar = LLMatcher.grammar_from_regex("remember me")
    assert await check.find_problem(grammar, "a") == ""
    check.close()
    assert await check.find_problem(grammar, "a") == ""
    assert check.pids == []


def steps(*steps: tuple[str, Any]) -> str:
    """Return what a scripted worker takes for a grammar."""
    return json.dumps(steps)


@contextmanager
def scripted(**limits: Any) -> Iterator[GrammarCheck]:
    check = GrammarCheck(worker_program=scripted_worker.__file__, **limits)
    yield check
    check.close()


@pytest.mark.slow
async def test_a_grammar_over_the_first_limit_gets_the_full_limit(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with scripted(first_limit_seconds=0.1, time_limit_seconds=30) as check:
        slow = steps(("append to", str(log)), ("burn", 0.4), ("fail", "its own reason"))
        assert await check.find_problem(slow, "a") == "its own reason"
        assert await check.find_problem(slow, "b") == "its own reason"
    assert log.read_text().count("asked") == 2


async def test_threat_27_the_verdict_names_the_limit_that_was_exceeded() -> None:
    with scripted(first_limit_seconds=0.05, time_limit_seconds=0.1) as check:
        assert await check.find_problem(steps(("burn", 60)), "a") == (
            "it takes more than 0.1 s of processor time to compile"
        )
        assert "1024 MiB of memory" in await check.find_problem(steps(("exit", MEMORY_EXIT_STATUS)), "a")


@pytest.mark.slow
async def test_threat_27_a_worker_killed_from_outside_gives_no_verdict_and_nothing_is_cached(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    with scripted() as check:
        killed = steps(("signal", signal.SIGKILL))
        for _ in range(2):
            with pytest.raises(WorkerUnavailable):
                await check.find_problem(killed, "a")
        assert await check.find_problem(steps(("signal once", str(marker))), "a") == ""


@pytest.mark.slow
async def test_threat_27_a_stopped_worker_does_not_block_requests() -> None:
    with scripted(wall_limit_seconds=0.5) as check:
        assert await check.find_problem(steps(), "a") == ""
        for pid in check.pids:
            os.kill(pid, signal.SIGSTOP)
        began = time.monotonic()
        assert await check.find_problem(steps(("fail", "no")), "a") == "no"
        assert time.monotonic() - began < 5


@pytest.mark.timing
@pytest.mark.slow
@pytest.mark.parametrize("num_seconds", [0.3, 60])
async def test_threat_27_many_slow_grammars_of_one_key_do_not_delay_another_key(num_seconds: float) -> None:
    with scripted(first_limit_seconds=0.25, time_limit_seconds=2) as check:
        flood = [
            asyncio.create_task(check.find_problem(steps(("burn", num_seconds), ("fail", str(number))), "flood"))
            for number in range(12)
        ]
        for number in range(6):
            await asyncio.sleep(0.3)
            began = time.monotonic()
            assert await check.find_problem(steps(("fail", f"quick {number}")), "other") == f"quick {number}"
            assert time.monotonic() - began < 1
        assert not all(task.done() for task in flood)
        for task in flood:
            task.cancel()


@pytest.mark.slow
async def test_threat_27_a_key_with_too_many_waiting_grammars_is_rejected(tmp_path: Path) -> None:
    with scripted(max_waiting_per_key=2) as check:
        flood = [asyncio.create_task(check.find_problem(steps(("sleep", 0.3), ("fail", n)), "flood")) for n in "abc"]
        await asyncio.sleep(0.05)
        with pytest.raises(ExecutorFull, match="This key is at its limit of 2 waiting grammar checks"):
            await check.find_problem(steps(("fail", "d")), "flood")
        assert await check.find_problem(steps(("fail", "e")), "other") == "e"
        assert await asyncio.gather(*flood) == ["a", "b", "c"]


async def test_concurrent_checks_of_one_grammar_are_merged(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with scripted(first_limit_seconds=5, max_waiting_per_key=2) as check:
        grammar = steps(("append to", str(log)), ("sleep", 0.2), ("fail", "no"))
        asked = [check.find_problem(grammar, key) for key in ("a", "b", "c") for _ in range(20)]
        assert await asyncio.gather(*asked) == ["no"] * 60
    assert log.read_text().count("asked") == 1


@pytest.mark.timing
@pytest.mark.slow
async def test_a_cached_verdict_is_returned_at_once_while_other_checks_wait() -> None:
    with scripted(max_waiting_per_key=1) as check:
        known = steps(("fail", "known"))
        assert await check.find_problem(known, "a") == "known"
        slow = [asyncio.create_task(check.find_problem(steps(("sleep", 0.5), ("fail", n)), "a")) for n in "xy"]
        await asyncio.sleep(0.05)
        began = time.monotonic()
        assert await check.find_problem(known, "a") == "known"
        assert time.monotonic() - began < 0.2
        await asyncio.gather(*slow)


async def test_a_cancelled_check_continues_for_other_requests() -> None:
    with scripted() as check:
        grammar = steps(("sleep", 0.3), ("fail", "no"))
        first, second = (asyncio.create_task(check.find_problem(grammar, "a")) for _ in range(2))
        await asyncio.sleep(0.1)
        first.cancel()
        assert await second == "no"
