"""Constrained answers do not depend on what other texts of their grammar did, nor on how busy the machine is."""

import itertools
import threading
import time

import pytest
from llguidance import LLMatcher, LLTokenizer

from caravan.model.tokenizer.grammar_tokenizer import grammar_tokenizer
from caravan.scheduler import compiled_grammar, grammar_threads
from caravan.scheduler import grammar as grammar_module
from caravan.scheduler.compiled_grammar import TOO_COMPLEX, CompiledGrammar, GrammarProblem, Position, Vocabulary
from caravan.scheduler.grammar import Grammars
from caravan.scheduler.grammar_limits import GrammarLimits
from tests.scheduler.constrained_requests import LETTERS, constrained, constrained_engine, grammars, ready
from tests.scheduler.requests import make_request
from tests.support.fakes import byte_tokenizer
from tests.support.tiny_llama import run_to_end

BRANCHES = LLMatcher.grammar_from_regex("(x[a-z]{20}|[a-w]{3}q[a-z]{30}|[y-z]{3}[0-9]{40})")
FAVOURED = [{ord("x"): 100.0}, {ord("a"): 100.0, ord("q"): 150.0}, {ord("y"): 100.0}]  # a branch each


@pytest.mark.slow
def test_a_shared_lexer_past_its_limit_changes_no_answer() -> None:
    requests = [constrained(index, BRANCHES, logit_bias=bias) for index, bias in enumerate(FAVOURED)]
    alone = {r.request_id: run_to_end(constrained_engine(), [r])[r.request_id] for r in requests}
    assert {answer.finish_reason for answer in alone.values()} == {"stop"}
    limits = {"max_lexer_states": 90}  # enough for each of them, and not for all
    for request in requests:
        assert (
            run_to_end(constrained_engine(grammars(**limits)), [request])[request.request_id]
            == alone[request.request_id]
        )
    engine = constrained_engine(grammars(**limits))
    assert run_to_end(engine, requests) == alone  # at the same time
    for request in requests * 2:  # and after each other
        assert run_to_end(engine, [request])[request.request_id] == alone[request.request_id]


@pytest.mark.slow
def test_a_token_that_a_shared_lexer_past_its_limit_rejects_is_consumed_by_a_separate_lexer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    request = constrained(1, LETTERS)
    expected = run_to_end(constrained_engine(), [request])[1]
    consume = CompiledGrammar.consume
    num_calls = 0

    def fail_once(self: CompiledGrammar, state: LLMatcher, token_id: int, *, is_cheap: bool) -> bool:
        nonlocal num_calls
        num_calls += 1
        if num_calls == 4:
            raise GrammarProblem(TOO_COMPLEX)
        return consume(self, state, token_id, is_cheap=is_cheap)

    for cheap_seconds in (1.0, -1.0):
        num_calls = 0
        monkeypatch.setattr(CompiledGrammar, "consume", fail_once)
        monkeypatch.setattr(grammar_module, "CHEAP_SECONDS", cheap_seconds)
        assert run_to_end(constrained_engine(), [request])[1] == expected
        assert num_calls == len(expected.token_ids) + 1


def test_a_grammar_that_was_too_slow_for_one_text_serves_later_requests(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = constrained_engine(grammars(mask_seconds=0.02))
    position_of = CompiledGrammar.position

    def slow(state: LLMatcher) -> Position:
        number = next(numbers)
        end_seconds = time.thread_time() + 0.05
        while number == 3 and time.thread_time() < end_seconds:
            pass
        return position_of(state)

    numbers = itertools.count()
    monkeypatch.setattr(CompiledGrammar, "position", staticmethod(slow))
    assert run_to_end(engine, [constrained(1, LETTERS)])[1].error_kind == "grammar"
    assert run_to_end(engine, [constrained(1, LETTERS)])[1].finish_reason == "stop"


def test_a_replay_has_the_time_of_all_its_tokens() -> None:
    made = grammars(start_seconds=0.0, mask_seconds=0.5)
    assert ready(made.matcher(LETTERS, [])).problem
    assert not ready(made.matcher(LETTERS, [ord("a")], "other")).problem


def test_the_time_of_the_vocabulary_does_not_count_for_a_grammar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammar_threads, "MAX_WALL_FACTOR", 1)

    def slow_tokenizer() -> LLTokenizer:
        time.sleep(0.3)
        return grammar_tokenizer(byte_tokenizer().resized(300))

    made = Grammars(slow_tokenizer, 2, GrammarLimits(start_seconds=0.2))
    matcher = made.matcher(LETTERS, [])
    while not matcher.is_ready:
        made.end_slow_calls()
        time.sleep(0.005)
    assert not matcher.problem


def test_a_step_that_computes_a_prompt_does_not_wait_for_a_late_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    may_end = threading.Event()
    position_of = CompiledGrammar.position

    def held(state: LLMatcher) -> Position:
        if state.compute_ff_bytes() == b"stuck":
            may_end.wait()
        return position_of(state)

    monkeypatch.setattr(CompiledGrammar, "position", staticmethod(held))
    engine = constrained_engine(grammars(wait_seconds=0.2), max_batch_tokens=16)
    engine.add(constrained(1, LLMatcher.grammar_from_regex("[a-c]stuck")))
    while not engine.scheduler.running or not (matcher := engine.scheduler.running[0].matcher) or not matcher.is_late:
        engine.step()
    engine.add(make_request(2, list(range(1, 200)), max_tokens=2))
    began = time.monotonic()
    steps = 0
    while not any(output.token_ids for output in engine.step().outputs):
        steps += 1
    assert steps >= 10
    assert time.monotonic() - began < 0.2 * steps
    may_end.set()


def test_tokens_are_replayed_only_while_no_mask_holds_the_lexer(monkeypatch: pytest.MonkeyPatch) -> None:
    may_end = threading.Event()
    began = threading.Event()
    replays: list[bool] = []
    position_of, replay = CompiledGrammar.position, compiled_grammar._replay

    def held(state: LLMatcher) -> Position:
        if state.compute_ff_bytes() == b"held":
            began.set()
            may_end.wait(60)
        return position_of(state)

    def watched(vocabulary: Vocabulary, state: LLMatcher, token_ids: list[int]) -> None:
        replays.append(may_end.is_set())
        replay(vocabulary, state, token_ids)

    monkeypatch.setattr(CompiledGrammar, "position", staticmethod(held))
    monkeypatch.setattr(compiled_grammar, "_replay", watched)
    made = grammars()
    text = LLMatcher.grammar_from_regex("[a-c]held|d[a-z]{9}")
    first = ready(made.matcher(text, []))
    first.offer(ord("a"))
    first.accept(ord("a"))
    assert began.wait(60)
    second = made.matcher(text, [ord("d")])
    second.wait(0.05)
    assert not second.is_ready
    may_end.set()
    assert not ready(second).problem
    assert replays == [True]


@pytest.mark.parametrize("cheap_seconds", [1.0, -1.0])
def test_a_panic_of_the_grammar_library_ends_its_request_and_not_the_engine(
    monkeypatch: pytest.MonkeyPatch, cheap_seconds: float
) -> None:
    class Panic(BaseException):
        """As the library's: no Exception."""

    def fail(self: CompiledGrammar, state: LLMatcher, token_id: int, *, is_cheap: bool) -> bool:
        raise Panic("canary7351")

    monkeypatch.setattr(CompiledGrammar, "consume", fail)
    monkeypatch.setattr(grammar_module, "CHEAP_SECONDS", cheap_seconds)
    transcripts = run_to_end(constrained_engine(), [constrained(1, LETTERS), constrained(2, "", max_tokens=5)])
    assert transcripts[1].error == "the grammar library failed (Panic)"
    assert transcripts[2].finish_reason == "length"
