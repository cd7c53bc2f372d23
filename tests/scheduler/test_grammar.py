"""Constrained text: what a grammar allows and nothing else, whatever shares the batch."""

import json
import re
import threading
import time

import jsonschema
import pytest
from llguidance import LLMatcher

from caravan.scheduler import grammar as grammar_module
from caravan.scheduler.compiled_grammar import (
    CANNOT_COMPILE,
    TOO_COMPLEX,
    CompiledGrammar,
    Position,
)
from caravan.scheduler.messages import StepOutput
from caravan.server.openai.structured_output.schema_grammar import grammar_of_schema
from tests.scheduler.constrained_requests import (
    LETTERS,
    PROMPT,
    constrained,
    constrained_engine,
    grammars,
    model,
    ready,
)
from tests.scheduler.requests import make_request
from tests.support.fakes import EOS, IM_END
from tests.support.json_schemas import random_schemas
from tests.support.tiny_llama import run_to_end
from tests.support.transcript_text import text_of


@pytest.mark.slow
def test_a_random_model_writes_json_of_220_schemas_at_temperature_1() -> None:
    schemas = random_schemas(220)
    requests = [constrained(index, grammar_of_schema(schema)) for index, schema in enumerate(schemas)]
    transcripts = run_to_end(constrained_engine(max_num_seqs=64), requests)
    for index, schema in enumerate(schemas):
        assert transcripts[index].finish_reason == "stop", (schema, transcripts[index], text_of(transcripts[index]))
        jsonschema.validate(json.loads(text_of(transcripts[index])), schema, jsonschema.Draft202012Validator)


def test_a_regular_expression_and_a_lark_grammar_constrain_the_output() -> None:
    lark = LLMatcher.grammar_from_lark('start: greeting " " NAME\ngreeting: "hi" | "hello"\nNAME: /[A-Z][a-z]{1,4}/')
    transcripts = run_to_end(constrained_engine(), [constrained(1, LETTERS), constrained(2, lark)])
    assert re.fullmatch("[a-z]{3}(, [a-z]{3}){2}", text_of(transcripts[1]))
    assert re.fullmatch("(hi|hello) [A-Z][a-z]{1,4}", text_of(transcripts[2]))


@pytest.mark.parametrize(
    "params", [{"temperature": 0.0}, {"top_k": 3}, {"repetition_penalty": 1.5}, {"min_tokens": 40}]
)
def test_every_sampling_method_keeps_to_the_grammar(params: dict[str, object]) -> None:
    transcript = run_to_end(constrained_engine(), [constrained(1, LETTERS, **params)])[1]
    assert re.fullmatch("[a-z]{3}(, [a-z]{3}){2}", text_of(transcript))
    assert transcript.finish_reason == "stop"


def test_logprobs_are_those_of_the_model_itself() -> None:
    free = run_to_end(constrained_engine(), [constrained(1, "", max_tokens=1, num_logprobs=300)])[1].logprobs[0]
    bound = run_to_end(constrained_engine(), [constrained(1, LETTERS, max_tokens=1, num_logprobs=300)])[1]
    assert bound.logprobs[0].top_logprobs == free.top_logprobs
    assert (
        bound.logprobs[0].logprob == dict(zip(free.top_token_ids, free.top_logprobs, strict=True))[bound.token_ids[0]]
    )


@pytest.mark.parametrize("speculation", ["on", "off"])
def test_rows_get_the_same_bits_alone_and_in_a_mixed_batch(speculation: str) -> None:
    requests = [constrained(i, LETTERS if i % 2 else "", max_tokens=40, num_logprobs=2) for i in range(8)]
    alone = {r.request_id: run_to_end(constrained_engine(), [r])[r.request_id] for r in requests}
    crowded = constrained_engine(num_blocks=20, max_model_len=128, speculation=speculation)
    assert run_to_end(crowded, requests, arrive_every=2) == alone


def test_a_draft_model_drafts_for_rows_without_a_grammar_only() -> None:
    requests = [constrained(i, LETTERS if i % 2 else "", max_tokens=40, num_logprobs=2) for i in range(4)]
    engine = constrained_engine(draft=model())
    steps: list[StepOutput] = []
    assert run_to_end(engine, requests, 2, steps.append) == run_to_end(constrained_engine(), requests)
    assert sum(step.stats.num_model_draft_tokens for step in steps) > 0


def test_a_request_submitted_again_continues_in_its_grammar() -> None:
    whole = run_to_end(constrained_engine(), [constrained(1, LETTERS)])[1]
    again = make_request(
        1,
        PROMPT,
        grammar=LETTERS,
        output=whole.token_ids[:5],
        temperature=1.0,
        seed=1,
        max_tokens=480,
        stop_token_ids=(EOS, IM_END),
    )
    assert run_to_end(constrained_engine(), [again])[1].token_ids == whole.token_ids[5:]


def test_a_grammar_that_cannot_be_compiled_ends_its_request_with_an_error_and_no_other() -> None:
    broken = constrained(1, LLMatcher.grammar_from_lark("start: nothing_of_that_name"))
    transcripts = run_to_end(constrained_engine(), [broken, constrained(2, LETTERS)])
    assert transcripts[1].finish_reason == "error"
    assert (transcripts[1].error, transcripts[1].error_kind) == (CANNOT_COMPILE, "grammar")
    assert transcripts[1].token_ids == []
    assert transcripts[2].finish_reason == "stop"


def test_a_bias_that_leaves_nothing_to_draw_is_an_error_and_never_free_text() -> None:
    only_a = LLMatcher.grammar_from_regex("a")
    transcript = run_to_end(constrained_engine(), [constrained(1, only_a, logit_bias={ord("a"): float("-inf")})])[1]
    assert transcript.finish_reason == "error"


def test_the_same_grammar_is_compiled_once_for_a_key() -> None:
    made = grammars()
    matchers = [made.matcher(LETTERS, [], "a"), made.matcher(LETTERS, [ord("a")], "a"), made.matcher(LETTERS, [], "b")]
    for matcher in matchers:
        assert not ready(matcher).problem
        assert {index for index in range(300) if matcher.allows(index)} == set(b"abcdefghijklmnopqrstuvwxyz")
    assert len(made._kept) == 2


def test_a_token_is_consumed_once_though_its_step_is_run_twice() -> None:
    matcher = ready(grammars().matcher(LETTERS, []))
    for token_id in b"abc, de":
        assert matcher.allows(token_id)
        for _ in range(2):
            matcher.offer(token_id)
            assert ready(matcher).allows(token_id)  # still the mask that it was drawn with
        matcher.accept(token_id)
        ready(matcher)
    assert not matcher.is_complete
    assert not matcher.problem


def test_rows_whose_masks_and_tokens_are_late_get_the_same_bits_in_later_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    requests = [constrained(i, LETTERS if i % 2 else "", max_tokens=12, num_logprobs=2) for i in range(6)]
    in_time = run_to_end(constrained_engine(), requests)
    position_of = CompiledGrammar.position

    def late(state: LLMatcher) -> Position:
        time.sleep(0.003)
        return position_of(state)

    monkeypatch.setattr(CompiledGrammar, "position", staticmethod(late))
    monkeypatch.setattr(grammar_module, "CHEAP_SECONDS", -1.0)  # tokens are taken in threads, too
    steps: list[int] = []
    small = constrained_engine(grammars(wait_seconds=0.0), num_blocks=12, max_model_len=64)
    assert run_to_end(small, requests, on_step=lambda output: steps.append(1)) == in_time
    assert len(steps) > 2 * 12


@pytest.mark.parametrize(
    ("limits", "problem"),
    [
        ({"max_symbols": 10}, CANNOT_COMPILE),
        ({"max_items_in_row": 20}, TOO_COMPLEX),
        ({"max_items_in_mask": 20}, TOO_COMPLEX),
        ({"lexer_fuel": 10}, TOO_COMPLEX),
        ({"max_lexer_states": 4}, TOO_COMPLEX),
        ({"mask_seconds": 1e-9}, "processor time"),
        ({"start_seconds": 1e-9}, "processor time"),
    ],
)
def test_threat_27_a_grammar_over_a_limit_ends_all_its_sequences_and_no_other(
    limits: dict[str, float], problem: str
) -> None:
    rules = "\n".join(f'w{i}: /[a-z]{{2}}{i}/ "b"' for i in range(30))
    wide = LLMatcher.grammar_from_lark(f'start: "a" word\nword: {" | ".join(f"w{i}" for i in range(30))}\n{rules}')
    requests = [constrained(1, wide), constrained(2, wide, temperature=0.0), constrained(3, "", max_tokens=5)]
    transcripts = run_to_end(constrained_engine(grammars(**limits)), requests)
    for request_id in (1, 2):
        assert (transcripts[request_id].finish_reason, transcripts[request_id].error_kind) == ("error", "grammar")
        assert problem in (transcripts[request_id].error or "")
    assert transcripts[3].finish_reason == "length"
    assert transcripts[3].token_ids == run_to_end(constrained_engine(), [requests[2]])[3].token_ids


def test_threat_27_a_grammar_within_the_limits_is_served() -> None:
    tight = grammars(max_symbols=10, max_items_in_row=20)
    assert run_to_end(constrained_engine(tight), [constrained(1, LETTERS)])[1].finish_reason == "stop"


def test_threat_27_no_step_waits_for_a_mask_that_does_not_come(monkeypatch: pytest.MonkeyPatch) -> None:
    may_end = threading.Event()

    def never(state: LLMatcher) -> Position:
        if state.compute_ff_bytes() == b"stuck":
            may_end.wait()
        return position_of(state)

    position_of = CompiledGrammar.position
    monkeypatch.setattr(CompiledGrammar, "position", staticmethod(never))
    engine = constrained_engine(grammars(wait_seconds=0.02, mask_seconds=0.05))
    run_to_end(engine, [constrained(9, LETTERS)])  # the first step takes longer
    engine.add(constrained(1, LLMatcher.grammar_from_regex("[a-c]stuck")))
    engine.add(constrained(2, "", max_tokens=60))
    engine.add(constrained(3, LETTERS))
    outputs = []
    while engine.scheduler.has_work:
        outputs += engine.step().outputs
    may_end.set()  # only now: no step waited for it
    reasons = {output.request_id: output.finish_reason for output in outputs if output.finish_reason}
    assert reasons.items() >= {1: "error", 3: "stop"}.items()
    assert reasons[2] != "error"
    assert engine.scheduler.pool.num_free == engine.scheduler.pool.num_blocks


def test_threat_31_the_error_of_a_grammar_quotes_neither_grammar_nor_library() -> None:
    canary = "canary7351"
    names = [f"{canary}{index}" for index in range(40)]
    wide = {"type": "object", "properties": {name: {"type": "string"} for name in names}, "minProperties": 1}
    for limits in ({"max_symbols": 100}, {"max_items_in_row": 50}, {"max_lexer_states": 10}):
        engine = constrained_engine(grammars(**limits))
        transcript = run_to_end(engine, [constrained(1, grammar_of_schema(wide))])[1]
        assert transcript.error in (CANNOT_COMPILE, TOO_COMPLEX)


def test_a_sequence_that_is_aborted_while_its_grammar_is_compiled_leaves_nothing() -> None:
    engine = constrained_engine()
    for request_id in range(20):
        engine.add(constrained(request_id, LETTERS))
    for request_id in range(20):
        engine.scheduler.abort(request_id)
    assert run_to_end(engine, [constrained(99, LETTERS)])[99].finish_reason == "stop"


def test_requests_whose_grammars_are_being_compiled_are_announced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    may_end = threading.Event()
    position_of = CompiledGrammar.position
    monkeypatch.setattr(CompiledGrammar, "position", staticmethod(lambda state: may_end.wait() and position_of(state)))
    engine = constrained_engine()
    batches: list[list[int]] = []
    engine.on_batch = batches.append
    engine.add(constrained(1, LETTERS))
    engine.add(constrained(2, "", max_tokens=3))
    engine.step()
    assert batches == [[2, 1]]
    may_end.set()
    while engine.scheduler.has_work:
        engine.step()
    assert batches[-1] == [1]
