"""Allowed tokens, bad words, truncated prompts, special tokens, repetitions and timings, as requests ask for them."""

from typing import Any

import pytest

from caravan.model.sampling.sampling_params import Repetition
from caravan.server.sandbox.chat_template import ChatTemplate
from tests.server.openai.api import CHAT, COMPLETIONS, Api, answered, open_api
from tests.support.fakes import EOS, IM_END, IM_START, byte_tokenizer, says
from tests.support.responses_events import RESPONSES
from tests.support.thinking import DEEPSEEK_R1, QWEN_3

BODIES: dict[str, dict[str, Any]] = {
    COMPLETIONS: {"model": "fake", "prompt": "hi"},
    CHAT: {"model": "fake", "messages": [{"role": "user", "content": "hi"}]},
    RESPONSES: {"model": "fake", "input": "hi"},
}


@pytest.mark.parametrize("path", BODIES)
async def test_rules_about_tokens_reach_the_engine(api: Api, path: str) -> None:
    rules = {
        "allowed_token_ids": [72, EOS, 72],
        "bad_words": ["bad", " bad"],
        "repetition_detection": {"max_pattern_size": 8, "min_count": 3},
    }
    answered(await api.http.post(path, json=BODIES[path] | rules))
    params = api.engine.submitted[0][1]
    assert params.allowed_token_ids == (72, EOS)
    assert params.bad_words == (tuple(b"bad"), tuple(b" bad"))
    assert params.repetition == Repetition(1, 8, 3)


@pytest.mark.parametrize(
    ("fields", "param", "says_what"),
    [
        ({"allowed_token_ids": []}, "allowed_token_ids", "at least 1"),
        ({"allowed_token_ids": [300]}, "allowed_token_ids", "must be from 0 to 259"),
        ({"allowed_token_ids": [-1]}, "allowed_token_ids", "must be from 0 to 259"),
        ({"allowed_token_ids": [1.5]}, "allowed_token_ids[0]", "integer"),
        ({"bad_words": "bad"}, "bad_words", "list of strings"),
        ({"bad_words": [" "]}, "bad_words", "no empty string"),
        ({"bad_words": ["a"] * 129}, "bad_words", "at most 128 strings"),
        ({"bad_words": ["a" * 129]}, "bad_words", "at most 128 characters"),
        ({"bad_words": ["\x04"]}, "bad_words", "cannot be encoded"),
        ({"repetition_detection": {"max_pattern_size": 5}}, "repetition_detection.min_count", "missing"),
        (
            {"repetition_detection": {"max_pattern_size": 5, "min_count": 1}},
            "repetition_detection.min_count",
            "at least 2",
        ),
        (
            {"repetition_detection": {"max_pattern_size": 2, "min_pattern_size": 3, "min_count": 2}},
            "repetition_detection",
            "at most `max_pattern_size`",
        ),
        ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens", "from 1 to 512"),
        ({"truncate_prompt_tokens": 513}, "truncate_prompt_tokens", "from 1 to 512"),
        ({"truncate_prompt_tokens": -2}, "truncate_prompt_tokens", "at least -1"),
        ({"skip_special_tokens": 1}, "skip_special_tokens", "true or false"),
    ],
)
async def test_wrong_rules_are_named(api: Api, fields: dict[str, Any], param: str, says_what: str) -> None:
    for path in (COMPLETIONS, CHAT):
        response = await api.http.post(path, json=BODIES[path] | fields)
        assert response.status_code == 400, response.text
        assert response.json()["error"]["param"] == param
        assert says_what in response.json()["error"]["message"]
    assert api.engine.submitted == []


async def test_a_request_whose_rules_leave_no_token_is_refused(api: Api) -> None:
    api.engine.refuses_grammar, api.engine.fails_after = True, 0
    response = await api.http.post(COMPLETIONS, json=BODIES[COMPLETIONS] | {"allowed_token_ids": [1]})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "allowed_token_ids"


async def test_the_end_of_a_prompt_is_kept(api: Api) -> None:
    long = "x" * 600 + "end"
    await api.complete(prompt=[long, "short"], truncate_prompt_tokens=5)
    assert [bytes(prompt) for prompt, _, _ in api.engine.submitted] == [b"xxend", b"short"]
    answer = await api.complete(prompt=long, truncate_prompt_tokens=-1, echo=True, max_tokens=12)
    assert answer["usage"]["prompt_tokens"] == 500
    assert answer["choices"][0]["text"].startswith("x" * 497 + "end")
    await api.complete(prompt=long, truncate_prompt_tokens=-1)
    assert len(api.engine.submitted[-1][0]) == 512 - 16
    await api.chat(messages=[{"role": "user", "content": long}], truncate_prompt_tokens=-1)
    assert len(api.engine.submitted[-1][0]) == 511
    assert api.prompt_text().endswith("end<|im_end|>\n<|im_start|>assistant\n")


async def test_special_tokens_can_be_shown(chat_ml: ChatTemplate) -> None:
    async with open_api(lambda prompt, params: [104, IM_START, 105, EOS], chat_template=chat_ml) as api:
        for fields, text in (({}, "hi"), ({"skip_special_tokens": False}, "h<|im_start|>i")):
            assert (await api.complete(**fields))["choices"][0]["text"] == text
            assert (await api.chat(**fields))["choices"][0]["message"]["content"] == text
            whole = answered(await api.http.post(RESPONSES, json=BODIES[RESPONSES] | fields))
            assert whole["output"][0]["content"][0]["text"] == text


@pytest.mark.parametrize("path", BODIES)
async def test_timings_are_in_the_usage_on_wish(api: Api, path: str) -> None:
    assert "timings" not in answered(await api.http.post(path, json=BODIES[path]))["usage"]
    api.engine.seconds_per_token = 0.01
    timings = answered(await api.http.post(path, json=BODIES[path] | {"timings": True}))["usage"]["timings"]
    assert set(timings) == {"queue_ms", "prefill_ms", "decode_ms", "tokens_per_second"}
    assert timings["queue_ms"] >= 0
    assert timings["prefill_ms"] >= 10
    assert timings["decode_ms"] >= 60
    assert timings["tokens_per_second"] == pytest.approx(6000 / timings["decode_ms"], rel=0.01)


async def test_timings_are_those_of_the_metrics_also_after_a_preemption(api: Api) -> None:
    api.engine.seconds_per_token = 0.01
    api.engine.preempts_after = 4
    timings = (await api.complete(timings=True))["usage"]["timings"]
    for name, metric in (("queue_ms", "queue"), ("prefill_ms", "prefill"), ("decode_ms", "decode")):
        assert api.sample(f"request_{metric}_time_seconds_sum") == pytest.approx(timings[name] / 1000, abs=1e-6)
    assert timings["decode_ms"] >= 60
    assert timings["prefill_ms"] < 40
    total_ms = timings["prefill_ms"] + timings["decode_ms"]
    assert api.sample("request_inference_time_seconds_sum") == pytest.approx(total_ms / 1000, abs=1e-6)


async def test_timings_of_a_single_token_have_no_rate(api: Api) -> None:
    answer = await api.complete(max_tokens=1, timings=True)
    assert answer["usage"]["timings"]["tokens_per_second"] == 0
    chunks = await api.stream(CHAT, timings=True, stream_options={"include_usage": True})
    assert "timings" in chunks[-1]["usage"]


async def test_a_repetition_is_a_stop_with_a_reason(api: Api) -> None:
    api.engine.repeats_after = 3
    for path in (COMPLETIONS, CHAT):
        (choice,) = answered(await api.http.post(path, json=BODIES[path]))["choices"]
        assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", "repetition")
        assert (choice["text"] if path == COMPLETIONS else choice["message"]["content"]) == "Hel"
        chunks = await api.stream(path)
        assert [chunk["choices"][0].get("stop_reason") for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
        assert chunks[-1]["choices"][0]["stop_reason"] == "repetition"
    whole = answered(await api.http.post(RESPONSES, json=BODIES[RESPONSES]))
    assert (whole["status"], whole["stop_reason"]) == ("completed", "repetition")


@pytest.mark.parametrize(("source", "start"), [(DEEPSEEK_R1, "inside"), (QWEN_3, "before")])
@pytest.mark.parametrize(
    "fields",
    [
        {"thinking_token_budget": 7},
        {"thinking_budget_tokens": 7},
        {"thinking_budget": 7},
        {"reasoning_budget": 7},
        {"thinking": {"type": "enabled", "budget_tokens": 7}},
        {"reasoning": {"max_tokens": 7}},
        {"custom_params": {"thinking_budget": 7}},
    ],
)
async def test_every_spelling_of_a_budget_reaches_the_engine(source: str, start: str, fields: dict[str, Any]) -> None:
    template = ChatTemplate(source, "<s>", "</s>")
    try:
        async with open_api(says("Hm.</think>Yes."), chat_template=template) as api:
            for path in (CHAT, RESPONSES):
                answered(await api.http.post(path, json=BODIES[path] | fields))
                budget = api.engine.requests[-1].thought
                assert budget is not None
                assert (budget.max_tokens, bytes(budget.closing_token_ids)) == (7, b"</think>")
                assert budget.automaton.is_inside(budget.first_state) == (start == "inside")
                assert budget.automaton.next_state(budget.first_state, IM_END) == budget.first_state  # it has no text
            for unlimited in ({}, {"thinking_token_budget": -1}):
                await api.chat(**unlimited)
                assert api.engine.requests[-1].thought is None
    finally:
        template.close()


async def test_a_budget_without_thoughts_is_a_warning_or_has_nothing_to_do(api: Api) -> None:
    answer = await api.chat(thinking_token_budget=5)
    assert answer["warnings"] == ["`thinking_token_budget` has no effect with the chat template of this model."]
    template = ChatTemplate(QWEN_3, "<s>", "</s>")
    try:
        async with open_api(says("Yes."), chat_template=template) as other:
            assert "warnings" not in await other.chat(thinking_token_budget=5, enable_thinking=False)
            assert other.engine.requests[-1].thought is None
    finally:
        template.close()


async def test_a_grammar_begins_after_the_thought() -> None:
    template = ChatTemplate(QWEN_3, "<s>", "</s>")
    try:
        async with open_api(says("<think>Hm.</think>a"), chat_template=template) as api:
            await api.chat(regex="a+")
            await api.chat(regex="a+", enable_thinking=False)
            wrapped, plain = api.engine.grammars
            assert "@answer" in wrapped
            assert "</think>" in wrapped
            assert "@answer" not in plain
            assert byte_tokenizer().special_tokens.get("<think>") is None
    finally:
        template.close()
