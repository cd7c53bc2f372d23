"""What is too much, what has no effect, and how the field is named that is meant."""

import json

import pytest

from caravan.server.sandbox.chat_template import ChatTemplate
from tests.server.openai.api import CHAT, COMPLETIONS, Api, Body, a_chat, answered, open_api


@pytest.mark.parametrize(
    ("path", "field", "asked"),
    [
        (COMPLETIONS, "max_tokens", {"prompt": "hi"}),
        (CHAT, "max_completion_tokens", {"messages": [{"role": "user", "content": "hi"}]}),
        ("/v1/responses", "max_output_tokens", {"input": "hi"}),
    ],
)
async def test_a_number_of_thousands_of_digits_is_too_long_for_the_model(
    api: Api, path: str, field: str, asked: Body
) -> None:
    written = json.dumps({"model": "fake", **asked, field: 1}).replace(f'"{field}": 1', f'"{field}": {"9" * 4300}')
    refused = await api.http.post(path, content=written, headers={"content-type": "application/json"})
    assert refused.status_code == 400
    assert refused.json()["error"]["code"] == "context_length_exceeded"


@pytest.mark.parametrize("form", [{"regex": "[0-9]"}, {"response_format": {"type": "json_object"}}])
async def test_min_tokens_cannot_be_combined_with_a_grammar(api: Api, form: Body) -> None:
    refused = await api.http.post(COMPLETIONS, json={"model": "fake", "prompt": "hi", "min_tokens": 2} | form)
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "min_tokens"
    assert api.engine.submitted == []


async def test_the_log_probabilities_of_prompts_in_a_response_are_limited(chat_ml: ChatTemplate) -> None:
    async with open_api(chat_template=chat_ml, max_model_len=8192) as api:
        long = {"model": "fake", "prompt": "a" * 8000, "max_tokens": 1}
        for fields in ({"prompt_logprobs": 20, "n": 3}, {"echo": True, "logprobs": 20, "n": 3}):
            refused = await api.http.post(COMPLETIONS, json=long | fields)
            assert refused.status_code == 400
            assert "504000 log-probabilities" in refused.json()["error"]["message"]
        assert api.engine.submitted == []
        assert (await api.http.post(COMPLETIONS, json=long | {"prompt_logprobs": 20, "n": 2})).status_code == 200


async def test_a_request_larger_than_the_queue_is_admitted_when_nothing_waits(api: Api) -> None:
    many = {"model": "fake", "input": ["a"] * 700}
    assert len(answered(await api.http.post("/v1/embeddings", json=many))["data"]) == 700
    assert len((await api.chat(n=128, max_tokens=300))["choices"]) == 128


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a b"}}},
            "response_format.json_schema.name",
            "must match",
        ),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "is missing"),
        ({"response_format": {"type": "json_schema", "json_schema": {"nam": 1, "name": "a"}}}, "NAM", "Unknown field"),
        ({"messages": [{"role": "user", "content": "x", "rol": 1}]}, "messages[0].rol", "Unknown field"),
    ],
)
async def test_a_field_is_named_as_it_was_sent(api: Api, fields: Body, param: str, says: str) -> None:
    error = (await api.http.post(CHAT, json=a_chat() | fields)).json()["error"]
    assert error["param"] == ("response_format.json_schema.nam" if param == "NAM" else param)
    assert says in error["message"]


async def test_a_name_that_the_template_does_not_write_is_a_warning(api: Api) -> None:
    named = [{"role": "user", "name": "bob", "content": "hi"}]
    (warning,) = (await api.chat(messages=named))["warnings"]
    assert "messages[].name" in warning
    assert "warnings" not in await api.chat()


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
async def test_log_probabilities_are_null_on_a_chunk_without_tokens(api: Api, path: str) -> None:
    chunks = await api.stream(path, logprobs=True if path == CHAT else 1)
    choices = [chunk["choices"][0] for chunk in chunks]
    assert choices[-1]["finish_reason"] == "stop"
    for choice in choices:
        text = choice["delta"].get("content") if path == CHAT else choice["text"]
        assert (choice["logprobs"] is None) == (not text)
