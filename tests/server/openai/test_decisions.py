"""/v1/decisions: questions about a text, what the engine gets for them, and the answers."""

import json
import math
from typing import Any

import httpx
import httpx2
import pytest
from openai import AsyncOpenAI

from caravan.server.generation.answer_codes import AnswerCodes, answer_codes
from caravan.server.openai.answer_probabilities import answer_probabilities
from caravan.server.openai.protocol.decision_parts import json_text
from caravan.server.openai.question import HOW_TO_ANSWER
from caravan.server.openai.question_reading import common_length
from caravan.server.sandbox.chat_template import ChatTemplate
from tests.server.openai.api import Api, Body, open_api
from tests.server.openai.asked_decisions import CHOICE, PATH, PREDICATE, SCORE, TEXT, a_decision, decide
from tests.support.error_answers import error_of
from tests.support.fakes import byte_tokenizer


async def test_a_question_is_a_prompt_with_its_state_first_and_a_code_for_each_option(api: Api) -> None:
    await decide(api)
    before = f"<|im_start|>user\nThe parcel came late and open.\n\n{HOW_TO_ANSWER}\n\n"
    assert [api.prompt_text(index) for index in range(3)] == [
        f"{before}{question}<|im_end|>\n<|im_start|>assistant\n"
        for question in (
            "True? The parcel arrived late.\nY: yes\nN: no",
            'Who handles it?\nA: "carrier" - transport damage\nB: false\nC: "false"',
            'How angry?\n{"of": ["10"]}\n0: calm\n1: angry - insults\n2: furious',
        )
    ]
    wanted = [list(map(chr, request.params.logprob_token_ids)) for request in api.engine.requests]
    assert wanted == [["Y", "N"], ["A", "B", "C"], ["0", "1", "2"]]
    assert {request.params.max_tokens for request in api.engine.requests} == {0}


@pytest.mark.parametrize(
    ("questions", "begin"),
    [
        ([PREDICATE, PREDICATE | {"instructions": "The sea is calm."}], "\n\nTrue? The "),
        ([PREDICATE, PREDICATE | {"instructions": "Late."}], "\n\nTrue? "),
        ([PREDICATE, CHOICE, SCORE], "\n\n"),
        ([CHOICE, CHOICE], '\n\nWho handles it?\nA: "carrier" - transport damage\nB: false\nC: "false"'),
    ],
)
async def test_what_all_questions_begin_with_is_computed_once(api: Api, questions: list[Body], begin: str) -> None:
    await decide(api, questions=questions)
    (shared,) = {request.num_shared_tokens for request in api.engine.requests}
    (_,) = {request.group for request in api.engine.requests}
    for request in api.engine.requests:
        assert shared < len(request.prompt_token_ids)
        assert bytes(request.prompt_token_ids[shared - len(begin) : shared]).decode() == begin
        assert request.prompt_token_ids[:shared] == api.engine.requests[0].prompt_token_ids[:shared]


@pytest.mark.parametrize(
    ("texts", "expected"),
    [([[1, 2]], 2), ([[1, 2], [1, 3, 4]], 1), ([[5], [1], [5]], 0), ([[1, 2], [1]], 1), ([[]], 0)],
)
def test_the_common_beginning_is_that_of_all_texts(texts: list[list[int]], expected: int) -> None:
    assert common_length(texts) == expected


async def test_answers_are_exact_probabilities_in_the_order_of_the_questions(api: Api) -> None:
    api.engine.logprob_after = lambda _, token_id: {"Y": -1.0, "N": -2.0, "A": -3.0, "B": -5.5, "C": -4.0}.get(
        chr(token_id), -float(chr(token_id)) - 1 if chr(token_id).isdigit() else 0.0
    )
    answer = await decide(api)
    assert answer["model"] == "fake"
    predicate, choice, score = answer["answers"]
    yes, no = math.exp(-1), math.exp(-2)
    assert predicate["type"] == "predicate"
    assert predicate["name"] == "late"
    assert predicate["probability"] == pytest.approx(yes / (yes + no), rel=1e-15)
    assert predicate["label_mass"] == pytest.approx(yes + no, rel=1e-15)
    assert choice["type"] == "choice"
    assert choice["name"] is None
    assert choice["choice"] == "carrier"
    weights = [math.exp(-3), math.exp(-5.5), math.exp(-4)]
    assert choice["probabilities"] == [
        {"value": value, "probability": pytest.approx(weight / sum(weights), rel=1e-15)}
        for value, weight in zip(["carrier", False, "false"], weights, strict=True)
    ]
    assert math.fsum(one["probability"] for one in choice["probabilities"]) == pytest.approx(1, abs=1e-15)
    best = choice["probabilities"][0]["probability"]
    assert choice["confidence"] == pytest.approx((3 * best - 1) / 2)
    assert score["type"] == "score"
    levels = [one["probability"] for one in score["probabilities"]]
    assert [(one["value"], one["label"]) for one in score["probabilities"]] == [
        (0, "calm"),
        (1, "angry"),
        (2, "furious"),
    ]
    assert score["score"] == pytest.approx(levels[1] + 2 * levels[2])
    assert score["confidence"] == pytest.approx(1 - (levels[1] + 2 * levels[2]) / (2 / 3))


async def test_usage_counts_the_prompt_once_for_each_question(chat_ml: ChatTemplate) -> None:
    async with open_api(chat_template=chat_ml, num_cached_tokens=16) as api:
        usage = (await decide(api))["usage"]
        num_tokens = sum(len(tokens) for tokens, *_ in api.engine.submitted)
        assert usage == {
            "input_tokens": num_tokens,
            "input_tokens_details": {"cached_tokens": 48, "cache_write_tokens": 0},
            "output_tokens": 0,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": num_tokens,
        }
        assert api.sample("prompt_tokens_total") == num_tokens


@pytest.mark.parametrize(
    ("logprobs", "probabilities", "choice_confidence", "score_confidence", "mass"),
    [
        ([-0.5], [1.0], 1.0, 1.0, math.exp(-0.5)),
        ([-math.inf, -math.inf], [0.5, 0.5], 0.0, 0.0, 0.0),
        ([-math.inf, -800.0], [0.0, 1.0], 1.0, 1.0, 0.0),
        ([math.log(0.25)] * 4, [0.25] * 4, 0.0, 0.0, 1.0),
        ([math.log(0.1), math.log(0.4)], [0.2, 0.8], 0.6, 0.6, 0.5),
    ],
)
def test_confidence_says_how_concentrated_the_probabilities_are(
    logprobs: list[float], probabilities: list[float], choice_confidence: float, score_confidence: float, mass: float
) -> None:
    found = answer_probabilities(logprobs)
    assert found.probabilities == pytest.approx(probabilities)
    assert found.choice_confidence == pytest.approx(choice_confidence)
    assert found.score_confidence == pytest.approx(score_confidence)
    assert found.label_mass == pytest.approx(mass)


async def test_a_conversation_is_rendered_and_the_question_continues_the_users_last_message(api: Api) -> None:
    items: list[Body] = [
        {"type": "message", "role": "developer", "content": "Be strict."},
        {
            "role": "user",
            "content": [{"type": "input_json", "data": {"a": [1, None]}}, {"type": "input_text", "text": "!"}],
        },
        {"type": "function_call", "call_id": "c1", "name": "find", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": [{"type": "input_text", "text": "found"}]},
        {"role": "assistant", "content": [{"type": "output_text", "text": "It is late."}], "phase": "final_answer"},
    ]
    answer = await decide(api, input=items, questions=[PREDICATE])
    assert answer["warnings"] == ["`input[].phase` has no effect on this server."]
    prompt = api.prompt_text()
    assert prompt.startswith(
        '<|im_start|>system\nBe strict.<|im_end|>\n<|im_start|>user\n{"a": [1, null]}!<|im_end|>\n'
    )
    assert "It is late.<|im_end|>\n<|im_start|>user\nAnswer each question with " in prompt
    await decide(api, input=[*items, {"role": "user", "content": "And now? "}], questions=[PREDICATE])
    assert "<|im_start|>user\nAnd now?\n\nAnswer each question with " in api.prompt_text()


async def test_a_text_of_a_special_token_is_ordinary_text(api: Api) -> None:
    await decide(api, input="a<|im_end|>", questions=[PREDICATE | {"instructions": "b<|im_start|>"}])
    tokens = api.engine.submitted[0][0]
    assert [token for token in tokens if token > 255] == [258, 259, 258]
    expected = f"a<|im_end|>\n\n{HOW_TO_ANSWER}\n\nTrue? b<|im_start|>\n".encode()
    assert expected in bytes(token for token in tokens if token < 256)


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"input": " "}, "input", "not empty"),
        ({"input": []}, "input", "not empty"),
        ({"input": ["x"]}, "input", "list of items"),
        ({"input": [{"role": "user", "content": "x"}] * 4097}, "input", "at most 4096"),
        ({"input": [{"type": "reasoning"}]}, "input", "item 0 is different"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "input", "images"),
        ({"input": [{"role": "user", "content": [{"type": "input_text", "text": 7}]}]}, "input", "string as `text`"),
        ({"input": [{"role": "user", "content": [7]}]}, "input[0].content", "list of text parts"),
        ({"input": [{"role": "robot", "content": "x"}]}, "input", "cannot be read as a conversation"),
        (
            {"input": [{"type": "function_call_output", "call_id": "c", "output": "x"}]},
            "input",
            "the call of each output",
        ),
        ({"questions": []}, "questions", "at least"),
        ({"questions": [PREDICATE] * 401}, "questions", "at most 400"),
        ({"questions": [{"type": "essay", "instructions": "x"}]}, "questions[0]", "of type"),
        ({"questions": [PREDICATE | {"instructions": ""}]}, "questions[0].instructions", "empty"),
        ({"questions": [PREDICATE | {"instructions": 7}]}, "questions[0].instructions", "must be a string or a list"),
        ({"questions": [PREDICATE | {"instructions": [{"type": "input_text"}]}]}, "questions[0].instructions", "parts"),
        ({"questions": [CHOICE | {"choices": CHOICE["choices"][:1]}]}, "questions[0].choices", "at least"),
        ({"questions": [CHOICE | {"choices": [{"value": "a"}, {"value": "a"}]}]}, "questions", "same value"),
        (
            {"questions": [CHOICE | {"choices": [{"value": 1}, {"value": "a"}]}]},
            "questions[0].choices[0].value",
            "boolean",
        ),
        (
            {"questions": [CHOICE | {"choices": [{"value": ""}, {"value": "a"}]}]},
            "questions[0].choices[0].value",
            "empty",
        ),
        ({"questions": [SCORE | {"levels": [{"label": "a"}]}]}, "questions[0].levels", "at least"),
        ({"questions": [PREDICATE | {"levels": []}]}, "questions[0].levels", "Unknown field"),
        ({"stream": True}, "stream", "not supported"),
        ({"model": "other"}, "model", "does not exist"),
        ({"input": "x" * 500}, None, "maximum context length"),
        ({"input": "\x04"}, "input", "cannot be encoded"),
        ({"questions": [PREDICATE | {"instructions": "\x04"}]}, "questions", "cannot be encoded"),
    ],
)
async def test_a_wrong_value_is_named(api: Api, fields: Body, param: str, says: str) -> None:
    response = await api.http.post(PATH, json=a_decision(**fields))
    error = error_of(response, 404 if "model" in fields else 400)
    assert error["param"] == param
    assert says in error["message"]
    assert not api.engine.submitted


async def test_more_options_than_codes_are_refused_with_the_number(api: Api) -> None:
    letters = [{"value": f"option {index}"} for index in range(26)]
    (answer,) = (await decide(api, questions=[CHOICE | {"choices": letters}]))["answers"]
    assert len(answer["probabilities"]) == 26
    more = [*letters, {"value": "one more"}]
    error = error_of(await api.http.post(PATH, json=a_decision(questions=[CHOICE | {"choices": more}])))
    assert error["param"] == "questions[0].choices"
    assert error["message"].endswith(
        "has 27 options; after the end of this model's prompts its tokenizer has one-token codes for 26."
    )


def test_json_is_bounded_in_depth_count_and_bytes() -> None:
    deep: Any = 1
    for _ in range(31):
        deep = [deep]
    assert json_text(deep) == json.dumps(deep)
    for value in ([deep], [0] * 10_000, "x" * 2**18):
        with pytest.raises(ValueError, match="must have JSON of at most"):
            json_text(value)


async def test_a_model_without_a_template_cannot_be_asked() -> None:
    async with open_api() as api:
        error = error_of(await api.http.post(PATH, json=a_decision()))
        assert error["param"] == "model"
        assert "no chat template" in error["message"]


async def test_prompts_of_all_questions_together_are_bounded(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("caravan.server.openai.question_reading.MAX_PROMPT_TOKENS", 300)
    error = error_of(await api.http.post(PATH, json=a_decision()))
    assert "more than 300 tokens together" in error["message"]


async def test_an_error_of_the_engine_and_a_deadline_have_their_status(api: Api) -> None:
    api.engine.fails_after = 0
    error_of(await api.http.post(PATH, json=a_decision()), 500)
    api.engine.fails_after = None
    api.engine.released.clear()
    late = await api.http.post(PATH, json=a_decision(), headers={"x-request-timeout-ms": "900"})
    error_of(late, 429)
    assert len(api.engine.aborted) >= 3
    api.engine.is_ready = False
    error_of(await api.http.post(PATH, json=a_decision()), 503)


async def test_the_official_client_reads_the_answers(api: Api) -> None:
    transport = httpx.ASGITransport(api.app)

    async with AsyncOpenAI(base_url="http://test/v1", api_key="none", http_client=_client(transport)) as client:
        decision = await client.decisions.create(
            model="fake",
            input=TEXT,
            questions=[PREDICATE, CHOICE, SCORE],  # type: ignore[list-item]  # dicts of the test
            prompt_cache_key="me",
        )
    predicate, choice, score = decision.answers
    assert predicate.type == "predicate"
    assert 0 < predicate.probability < 1
    assert choice.type == "choice"
    assert choice.choice in ("carrier", False, "false")
    assert [type(one.value) for one in choice.probabilities] == [str, bool, str]
    assert score.type == "score"
    assert score.score == pytest.approx(sum(one.value * one.probability for one in score.probabilities))
    assert decision.usage.output_tokens == 0


def _client(transport: httpx.ASGITransport) -> Any:
    """Return what the official client takes for its HTTP client, over the application of the test."""
    return httpx2.AsyncClient(transport=httpx2.ASGITransport(transport.app))


async def test_the_explanation_has_the_events_of_every_question(api: Api) -> None:
    explanation = (await decide(api, explain=True))["explanation"]
    assert [choice["finish_reason"] for choice in explanation["choices"]] == ["length"] * 3


def test_codes_beyond_the_vocabulary_of_the_model_are_left_out(chat_ml: ChatTemplate) -> None:
    codes = answer_codes(byte_tokenizer(), chat_ml)
    assert codes.within(300) == codes
    fewer = codes.within(ord("N"))
    assert [code.text for code in fewer.letters] == list("ABCDEFGHIJKLM")
    assert fewer.yes_and_no == ()
    assert AnswerCodes().within(0) == AnswerCodes()
