"""Budgets of thoughts, bad words and allowed tokens in the engine: exact, and the same bits in any batch."""

from typing import Any

import msgspec
import pytest

from caravan.scheduler.constrained_rows import NONE_ALLOWED
from caravan.scheduler.messages import Request, SequenceOutput, StepOutput
from caravan.scheduler.thought_budget import INSIDE, MarkAutomaton, ThoughtBudget
from caravan.server.generation.mark_automaton import mark_automaton
from caravan.server.generation.thought_splitter import Thoughts
from caravan.server.openai.structured_output.thought_grammar import after_thought
from caravan.server.sandbox.thought_marks import ThoughtMarks
from tests.scheduler.constrained_requests import LETTERS, constrained, constrained_engine
from tests.scheduler.requests import make_request
from tests.support.engine_kinds import engine_of, random_prompt
from tests.support.fakes import byte_tokenizer
from tests.support.tiny_llama import Transcript, run_to_end

THINK = ThoughtMarks("<think>", "</think>")
VOCAB_SIZE = 300
MARK = (5, 6, 7)
TEXTS = {5: b"</", 6: b"think", 7: b">"}
WORDS = ((3,), (4, 9), (250, 3, 4))
ALLOWED = (2, 3, 50, 299)


def budget(max_tokens: int) -> ThoughtBudget:
    """Return the budget of a thought that the prompt has opened."""
    automaton = mark_automaton(THINK, lambda token_id: TEXTS.get(token_id, b"x"), VOCAB_SIZE)
    return ThoughtBudget(max_tokens=max_tokens, closing_token_ids=MARK, first_state=INSIDE, automaton=automaton)


def ruled(request_id: int, max_thought: int | None = None, **params: Any) -> Request:
    defaults = {"temperature": 0.9, "seed": request_id, "num_logprobs": 2, "max_tokens": 20}
    request = make_request(request_id, random_prompt(request_id, 10 + 3 * request_id), **defaults | params)
    return request if max_thought is None else msgspec.structs.replace(request, thought=budget(max_thought))


def requests() -> list[Request]:
    return [
        *(ruled(i, 3 * i, top_p=0.9 if i % 2 else 1.0) for i in range(5)),
        ruled(
            5, 4, temperature=0.0, bad_words=((5,), (6,)), logit_bias={7: -100.0}
        ),  # none of these holds for the mark
        ruled(6),
        ruled(7, bad_words=WORDS, temperature=1.5),
        ruled(8, allowed_token_ids=ALLOWED, top_p=0.8),
        ruled(9, 2, allowed_token_ids=ALLOWED),  # the mark comes nevertheless
    ]


def alone(request: Request, kind: str = "float32") -> Transcript:
    return run_to_end(engine_of(kind, block_size=16, max_model_len=96), [request])[request.request_id]


@pytest.mark.parametrize("kind", ["float32", "none", "float32, overlapped", "none, overlapped"])
def test_rules_hold_and_change_no_bit_of_others(kind: str) -> None:
    engine = engine_of(kind, block_size=16, max_model_len=96, max_batch_tokens=33)
    together = run_to_end(engine, requests(), arrive_every=2)
    for request in requests():
        assert together[request.request_id] == alone(request, kind.removesuffix(", overlapped"))
    for number in range(5):
        assert tuple(together[number].token_ids[3 * number :][:3]) == MARK
        assert len(together[number].token_ids) == 20
    assert tuple(together[5].token_ids[4:7]) == MARK
    assert tuple(together[9].token_ids[2:5]) == MARK
    assert {*together[9].token_ids[:2], *together[9].token_ids[5:]} <= set(ALLOWED)
    assert set(together[8].token_ids) <= set(ALLOWED)
    assert not any(contains(together[7].token_ids, word) for word in WORDS)


def contains(text: list[int], word: tuple[int, ...]) -> bool:
    return any(tuple(text[start : start + len(word)]) == word for start in range(len(text)))


@pytest.mark.parametrize("kind", ["float32", "float32, overlapped"])
def test_bad_words_would_have_come_otherwise(kind: str) -> None:
    free = run_to_end(engine_of(kind, block_size=16, max_model_len=96), [ruled(0)])[0].token_ids
    for length in (1, 2, 3):
        word = tuple(free[6 - length : 6])
        request = ruled(0, bad_words=(word,))
        engine = engine_of(kind, block_size=16, max_model_len=96)
        found = run_to_end(engine, [request])[0].token_ids
        if not contains(free[:5], word):
            assert found[:5] == free[:5]
        assert found[5] != free[5]
        assert not contains(found, word)


@pytest.mark.parametrize("kind", ["float32", "float32, overlapped"])
def test_preemptions_and_restarts_change_no_bit(kind: str) -> None:
    engine = engine_of(kind, num_blocks=8, block_size=16, max_model_len=96)
    num_preemptions: list[int] = []
    together = run_to_end(engine, requests(), on_step=lambda step: num_preemptions.append(step.stats.num_preemptions))
    assert sum(num_preemptions) > 0
    for request in requests():
        whole = alone(request)
        assert together[request.request_id] == whole
        for cut in (1, 5, 13):
            again = msgspec.structs.replace(request, output_token_ids=whole.token_ids[:cut])
            assert alone(again).token_ids == whole.token_ids[cut:]


def test_drafts_change_no_bit() -> None:
    greedy = [
        msgspec.structs.replace(
            ruled(number, 6 + number, temperature=0.0, max_tokens=40), prompt_token_ids=[5, 6, 8, 9] * 5
        )
        for number in range(2)
    ]
    plain = {request.request_id: alone(request) for request in greedy}
    engine = engine_of("float32", block_size=16, max_model_len=96, speculation="on")
    assert run_to_end(engine, greedy) == plain


def test_steps_overlap_while_a_thought_is_far_from_its_end() -> None:
    engine = engine_of("float32, overlapped", block_size=16, max_model_len=96)
    num_ahead: list[int] = []

    def observe(_: StepOutput) -> None:
        num_ahead.append(len(engine._overlap.ahead))  # type: ignore[attr-defined]

    run_to_end(engine, [ruled(0, 12)], on_step=observe)
    assert sum(num_ahead[:10]) >= 9
    assert num_ahead[12:15] == [0, 0, 0]  # each token of the closing mark is forced
    assert sum(num_ahead[15:]) > 0


def test_a_request_without_any_token_left_fails_alone() -> None:
    engine = engine_of("float32", block_size=16, max_model_len=96)
    outputs: list[SequenceOutput] = []
    dead = ruled(0, allowed_token_ids=(3, 4), bad_words=((3,), (4, 4)))
    for request in (dead, ruled(1)):
        engine.add(request)
    while engine.has_work:
        outputs += engine.step().outputs
    ends = {output.request_id: output for output in outputs if output.finish_reason}
    assert (ends[0].finish_reason, ends[0].error, ends[0].error_kind) == ("error", NONE_ALLOWED, "grammar")
    assert ends[1].finish_reason == "length"


def byte_automaton() -> MarkAutomaton:
    tokenizer = byte_tokenizer()

    def text_of(token_id: int) -> bytes:
        is_text = token_id < tokenizer.vocab_size and not tokenizer.is_special(token_id)
        return tokenizer.token_bytes(token_id) if is_text else b""

    return mark_automaton(THINK, text_of, VOCAB_SIZE)


@pytest.mark.slow
def test_a_grammar_begins_after_a_thought_whose_budget_is_used_up() -> None:
    thoughts = Thoughts(THINK, "open")
    grammar = after_thought(LETTERS, thoughts, {})
    request = msgspec.structs.replace(
        constrained(1, grammar, max_tokens=80),
        thought=ThoughtBudget(
            max_tokens=10, closing_token_ids=tuple(b"</think>"), first_state=INSIDE, automaton=byte_automaton()
        ),
    )
    transcript = run_to_end(constrained_engine(), [request])[1]
    text = bytes(token for token in transcript.token_ids if token < 256)
    thought, mark, content_bytes = text.partition(b"</think>")
    assert mark
    assert len(thought) == 12  # the tenth token begins a character of three bytes, which is finished first
    assert len(thought.decode()) < 12
    content = content_bytes.lstrip(b"\n").decode()
    assert [len(word) for word in content.split(", ")] == [3, 3, 3]
    beside = run_to_end(constrained_engine(), [request, constrained(2, LETTERS)], arrive_every=1)
    assert beside[1] == transcript
