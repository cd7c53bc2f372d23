"""Constrained text: what a grammar allows and nothing else, whatever shares the batch."""

import json
import re
from functools import cache
from typing import Any

import jsonschema
import pytest
from llguidance import LLMatcher

from model.attention.cpu import CpuAttention
from model.cpu.build import load_kernels
from model.grammar import grammar_tokenizer
from model.llama import Llama
from scheduler.engine import Engine
from scheduler.grammar import Grammars
from scheduler.messages import Request
from server.openai.constraint import grammar_of_schema
from tests.fakes import EOS, IM_END, byte_tokenizer
from tests.json_schemas import random_schemas
from tests.scheduler.requests import make_request
from tests.tiny_llama import Transcript, run_to_end, tiny_engine, tiny_llama

PROMPT = [1, 2, 3, 4]
LETTERS = LLMatcher.grammar_from_regex("[a-z]{3}(, [a-z]{3}){2}")


@cache
def model() -> Llama:
    return tiny_llama(make_model=lambda config: Llama(config, CpuAttention(load_kernels())))


def grammars() -> Grammars:
    return Grammars(lambda: grammar_tokenizer(byte_tokenizer().resized(300)), num_threads=2)


def constrained_engine(**limits: Any) -> Engine:
    return tiny_engine(
        model(), grammars=grammars(), **{"num_blocks": 512, "block_size": 16, "max_model_len": 512} | limits
    )


def constrained(request_id: int, grammar: str, **params: Any) -> Request:
    defaults: dict[str, Any] = {"temperature": 1.0, "seed": request_id, "max_tokens": 480}
    sampling = defaults | {"stop_token_ids": (EOS, IM_END)} | params
    return make_request(request_id, PROMPT, grammar=grammar, **sampling)


def text_of(transcript: Transcript) -> str:
    return bytes(token for token in transcript.token_ids if token < 256).decode()


def test_a_random_model_writes_json_of_220_schemas_at_temperature_1() -> None:
    schemas = random_schemas(220)
    requests = [constrained(index, grammar_of_schema(schema)) for index, schema in enumerate(schemas)]
    transcripts = run_to_end(constrained_engine(max_num_seqs=64), requests)
    for index, schema in enumerate(schemas):
        assert transcripts[index].finish_reason == "stop", (schema, transcripts[index], text_of(transcripts[index]))
        jsonschema.validate(json.loads(text_of(transcripts[index])), schema, jsonschema.Draft202012Validator)


def test_a_regular_expression_and_a_lark_grammar_hold() -> None:
    lark = LLMatcher.grammar_from_lark('start: greeting " " NAME\ngreeting: "hi" | "hello"\nNAME: /[A-Z][a-z]{1,4}/')
    transcripts = run_to_end(constrained_engine(), [constrained(1, LETTERS), constrained(2, lark)])
    assert re.fullmatch("[a-z]{3}(, [a-z]{3}){2}", text_of(transcripts[1]))
    assert re.fullmatch("(hi|hello) [A-Z][a-z]{1,4}", text_of(transcripts[2]))


@pytest.mark.parametrize(
    "params", [{"temperature": 0.0}, {"top_k": 3}, {"repetition_penalty": 1.5}, {"min_tokens": 40}]
)
def test_every_way_of_choosing_tokens_keeps_to_the_grammar(params: dict[str, object]) -> None:
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


@pytest.mark.parametrize("speculation", ["auto", "off"])
def test_rows_get_the_same_bits_alone_and_in_a_mixed_batch(speculation: str) -> None:
    requests = [constrained(i, LETTERS if i % 2 else "", max_tokens=40, num_logprobs=2) for i in range(8)]
    alone = {r.request_id: run_to_end(constrained_engine(), [r])[r.request_id] for r in requests}
    crowded = constrained_engine(num_blocks=20, max_model_len=128, speculation=speculation)
    assert run_to_end(crowded, requests, arrive_every=2) == alone


def test_a_request_submitted_again_goes_on_in_its_grammar() -> None:
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
    assert "nothing_of_that_name" in (transcripts[1].error or "")
    assert transcripts[1].token_ids == []
    assert transcripts[2].finish_reason == "stop"


def test_a_bias_that_leaves_nothing_to_draw_is_an_error_and_never_free_text() -> None:
    only_a = LLMatcher.grammar_from_regex("a")
    transcript = run_to_end(constrained_engine(), [constrained(1, only_a, logit_bias={ord("a"): float("-inf")})])[1]
    assert transcript.finish_reason == "error"


def test_the_same_grammar_is_compiled_once() -> None:
    made = grammars()
    first, second = made.matcher(LETTERS, []), made.matcher(LETTERS, [ord("a")])
    assert not first.error
    assert not second.error
    assert len(made._compiled) == 1
    for mask in made.masks([first, second]):
        allowed = {index for index in range(300) if mask[index // 8] >> index % 8 & 1}
        assert allowed == set(b"abcdefghijklmnopqrstuvwxyz")


def test_a_token_is_allowed_where_its_bit_of_the_mask_is_set() -> None:
    made = grammars()
    matcher = made.matcher(grammar_of_schema({"type": "object", "properties": {"a": {"type": "integer"}}}), [])
    assert not matcher.error
    for token_id in b'{"a": 12}':
        [mask] = made.masks([matcher])
        bits = [bool(mask[index // 8] >> index % 8 & 1) for index in range(300)]
        assert bits == [matcher.allows(index) for index in range(300)]
        assert matcher.accept(token_id)
