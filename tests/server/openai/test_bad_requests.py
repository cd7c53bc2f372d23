"""What a caller did wrong: the right status, a short ASCII error that names the field, and no work for the engine."""

import json
from typing import Any

import pytest

from caravan.server.generation.request_limits import RequestLimits
from caravan.server.sandbox.chat_template import ChatTemplate
from tests.server.openai.api import CHAT, COMPLETIONS, MAX_MODEL_LEN, Api, Body, a_chat, open_api
from tests.support.error_answers import error_of

PRIVATE_USE = "".join(map(chr, range(0xE000, 0xF900)))
JSON = {"content-type": "application/json"}


async def refused(api: Api, path: str, fields: Body, *, param: str | None, says: str, status: int = 400) -> None:
    body = (a_chat() if path == CHAT else {"model": "fake", "prompt": "hi"}) | fields
    error = error_of(await api.http.post(path, json=body), status)
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert says in error["message"]
    assert api.engine.submitted == []


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"n": 0}, "n", "at least 1"),
        ({"n": 10**6}, "n", "at most 128"),
        ({"n": 1.5}, "n", "must be an integer"),
        ({"n": True}, "n", "must be an integer"),
        ({"n": "2"}, "n", "must be an integer"),
        ({"temperature": -0.1}, "temperature", "at least 0"),
        ({"temperature": 2.1}, "temperature", "at most 2"),
        ({"temperature": "hot"}, "temperature", "must be a number"),
        ({"temperature": 10**400}, "temperature", "temperature"),
        ({"top_p": 1.01}, "top_p", "at most 1"),
        ({"top_k": -2}, "top_k", "at least -1"),
        ({"top_k": 2**31}, "top_k", "less than"),
        ({"min_p": -1}, "min_p", "at least 0"),
        ({"presence_penalty": 3}, "presence_penalty", "at most 2"),
        ({"frequency_penalty": -3}, "frequency_penalty", "at least -2"),
        ({"repetition_penalty": 0}, "repetition_penalty", "greater than 0"),
        ({"seed": 2**64}, "seed", "less than"),
        ({"seed": "x"}, "seed", "must be an integer"),
        ({"max_tokens": 0}, "max_tokens", "at least 1"),
        ({"max_tokens": -1}, "max_tokens", "at least"),
        ({"min_tokens": -1}, "min_tokens", "at least 0"),
        ({"min_tokens": 11, "max_tokens": 10}, "min_tokens", "at most 10"),
        ({"stop": 1}, "stop", "a string or a list of strings"),
        ({"stop": ["a", 1]}, "stop", "a string or a list of strings"),
        ({"stop": ["a"] * 17}, "stop", "at most 16"),
        ({"stop": ["a", ""]}, "stop", "no empty string"),
        ({"stop": "x" * 1025}, "stop", "at most 1024"),
        ({"stop_token_ids": [-1]}, "stop_token_ids", "-1; it must be from 0 to 259"),
        ({"stop_token_ids": [260]}, "stop_token_ids", "260"),
        ({"stop_token_ids": [2**31]}, "stop_token_ids", str(2**31)),
        ({"stop_token_ids": [2**63]}, "stop_token_ids", str(2**63)),
        ({"stop_token_ids": [1.5]}, "stop_token_ids[0]", "must be an integer"),
        ({"logit_bias": {"260": 1}}, "logit_bias", "260"),
        ({"logit_bias": {"-1": 1}}, "logit_bias", "-1"),
        ({"logit_bias": {str(2**63): 1}}, "logit_bias", str(2**63)),
        ({"logit_bias": {"a": 1}}, "logit_bias", "token ids as keys"),
        ({"logit_bias": {"1": 101}}, "logit_bias", "from -100 to 100"),
        ({"logit_bias": {"1": True}}, "logit_bias", "from -100 to 100"),
        ({"logit_bias": [1]}, "logit_bias", "an object"),
        ({"stream": 1}, "stream", "true or false"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "`stream`"),
        ({"stream": True, "stream_options": {"other": 1}}, "stream_options.other", "Unknown field"),
        ({"stream": True, "stream_options": 1}, "stream_options", "an object"),
        ({"best_offer": 1}, "best_offer", "Unknown field"),
        ({"model": None}, "model", "must be a string"),
    ],
)
async def test_a_wrong_value_is_named(api: Api, path: str, fields: Body, param: str, says: str) -> None:
    await refused(api, path, fields, param=param, says=says)


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"prompt": ""}, "prompt", "empty"),
        ({"prompt": []}, "prompt", "empty"),
        ({"prompt": [[]]}, "prompt", "empty"),
        ({"prompt": ["a", ""]}, "prompt[1]", "empty"),
        ({"prompt": [[1], []]}, "prompt[1]", "empty"),
        ({"prompt": None}, "prompt", "must be a string"),
        ({"prompt": 7}, "prompt", "must be a string"),
        ({"prompt": {"a": 1}}, "prompt", "must be a string"),
        ({"prompt": [1, "a"]}, "prompt", "must be a string"),
        ({"prompt": [True]}, "prompt", "must be a string"),
        ({"prompt": [1.5]}, "prompt", "must be a string"),
        ({"prompt": [[1], [2.5]]}, "prompt", "must be a string"),
        ({"prompt": [-1]}, "prompt", "-1; it must be from 0 to 259"),
        ({"prompt": [260]}, "prompt", "260"),
        ({"prompt": [[1], [2**31]]}, "prompt[1]", str(2**31)),
        ({"prompt": [2**63]}, "prompt", str(2**63)),
        ({"prompt": [10**4000]}, "prompt", "10000"),
        ({"prompt": "\x04"}, "prompt", "cannot be encoded"),
        ({"prompt": ["a"] * 129, "n": 2}, "n", "258 choices"),
        ({"logprobs": 21}, "logprobs", "at most 20"),
        ({"logprobs": -1}, "logprobs", "at least 0"),
        ({"logprobs": True}, "logprobs", "must be an integer"),
        ({"echo": "yes"}, "echo", "must be true or false"),
        ({"max_tokens": 0}, "max_tokens", "at least 1 without `echo`"),
        ({"max_tokens": -1}, "max_tokens", "at least 0"),
        ({"prompt_logprobs": 21}, "prompt_logprobs", "at most 20"),
        ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs", "cannot be streamed"),
        ({"suffix": "end"}, "suffix", "not supported"),
        ({"best_of": 2, "n": 3}, "best_of", "at least `n`"),
        ({"best_of": 2, "stream": True}, "best_of", "streamed"),
        ({"messages": []}, "messages", "Unknown field"),
    ],
)
async def test_a_wrong_value_of_a_completion_is_named(api: Api, fields: Body, param: str, says: str) -> None:
    await refused(api, COMPLETIONS, fields, param=param, says=says)


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"messages": []}, "messages", "at least 1"),
        ({"messages": None}, "messages", "must be a list"),
        ({"messages": "hi"}, "messages", "must be a list"),
        ({"messages": ["hi"]}, "messages[0]", "must be an object"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "missing"),
        ({"messages": [{"content": "hi"}]}, "messages[0].role", "missing"),
        ({"messages": [{"role": "king", "content": "hi"}]}, "messages[0].role", "must be 'system'"),
        ({"messages": [{"role": "user", "content": 1}]}, "messages[0].content", "text parts"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content", "text parts"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://a"}}]}]},
            "messages[0].content",
            "image_url",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content", "part 0"),
        ({"messages": [{"role": "user", "content": "a", "colour": 1}]}, "messages[0].colour", "Unknown field"),
        ({"messages": [{"role": "user", "content": "a"}] * 4097}, "messages", "at most 4096"),
        ({"messages": [{"role": "user", "content": "a\x04"}]}, "messages", "cannot be encoded"),
        ({"messages": [{"role": "user", "content": PRIVATE_USE}]}, "messages", "private-use"),
        ({"top_logprobs": 2}, "top_logprobs", "`logprobs`"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "at most 20"),
        ({"logprobs": 1}, "logprobs", "true or false"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens", "differ"),
        ({"max_completion_tokens": 0}, "max_completion_tokens", "at least 1"),
        (
            {"continue_final_message": True, "add_generation_prompt": True},
            "continue_final_message",
            "cannot be combined",
        ),
        ({"chat_template": "{{ x }}"}, "chat_template", "not supported"),
        ({"chat_template_kwargs": 1}, "chat_template_kwargs", "must be an object"),
        ({"chat_template_kwargs": {"a": []}}, "chat_template_kwargs", "must have numbers"),
        ({"chat_template_kwargs": {"a": "b" * 257}}, "chat_template_kwargs", "at most 256 characters"),
        ({"chat_template_kwargs": {"a b": 1}}, "chat_template_kwargs", "must have names of letters"),
        ({"chat_template_kwargs": {f"a{i}": 1 for i in range(17)}}, "chat_template_kwargs", "at most 16 names"),
        ({"chat_template_kwargs": {"bos_token": ""}}, "chat_template_kwargs", "leave it out"),
        ({"chat_template_kwargs": {"tools": 1}}, "chat_template_kwargs", "use the field"),
        ({"reasoning_effort": "huge"}, "reasoning_effort", "must be"),
        ({"think": "huge"}, "think", "must be true, false"),
        ({"thinking": {"type": "maybe"}}, "thinking.type", "must be"),
        ({"thinking_token_budget": -2}, "thinking_token_budget", "at least -1"),
        ({"thinking_token_budget": 5, "thinking": {"budget_tokens": 6}}, "thinking_token_budget", "differ"),
        ({"think": "low", "reasoning": {"effort": "high"}}, "reasoning.effort", "differ"),
        ({"think": True, "enable_thinking": False}, "enable_thinking", "differ"),
        ({"tools": [{"type": "function"}]}, "tools[0].function", "is missing"),
        ({"tool_choice": "required"}, "tool_choice", "does not have"),
        ({"response_format": {"type": "xml"}}, "response_format", "must be of type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "is missing"),
        ({"modalities": ["audio"]}, "modalities", "can only be"),
        ({"prompt": "hi"}, "prompt", "Unknown field"),
    ],
)
async def test_a_wrong_value_of_a_chat_is_named(api: Api, fields: Body, param: str, says: str) -> None:
    await refused(api, CHAT, fields, param=param, says=says)


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"null", "must be an object"),
        (b"[]", "must be an object"),
        (b'"text"', "must be an object"),
        (b"{} {}", "not JSON"),
        (b'{"temperature": NaN}', "NaN"),
        (b'{"temperature": -Infinity}', "Infinity"),
        (b'{"temperature": 1e999}', "out of range"),
        (b'{"temperature": -1e999}', "out of range"),
        (b'{"seed": 1' + b"0" * 5000 + b"}", "too many digits"),
        (b'{"model": "fake", "model": "fake"}', "duplicate key"),
        (b'{"logit_bias": {"1": 1, "1": 2}}', "duplicate key"),
        (b'{"model": "\xff\xfe"}', "not UTF-8"),
        (b'{"model": "\xed\xa0\x80"}', "not UTF-8"),
        (b'{"model": "\\ud800"}', "lone surrogate"),
        (b'{"\\udfff": 1}', "lone surrogate"),
        (b'{"model": "a\nb"}', "not JSON"),
        (b"[" * 500 + b"]" * 500, "nested too deeply"),
        (b'{"a":' * 500 + b"1" + b"}" * 500, "nested too deeply"),
    ],
    ids=lambda value: value[:20].decode("latin-1") if isinstance(value, bytes) else None,
)
async def test_threat_2_invalid_json_is_refused(api: Api, path: str, body: bytes, says: str) -> None:
    error = error_of(await api.http.post(path, content=body, headers=JSON))
    assert error["type"] == "invalid_request_error"
    assert says in error["message"]
    assert api.engine.submitted == []


async def test_a_surrogate_pair_is_a_character(api: Api) -> None:
    body = b'{"model": "fake", "prompt": "\\ud83d\\ude00"}'
    assert (await api.http.post(COMPLETIONS, content=body, headers=JSON)).status_code == 200
    assert api.prompt_text() == "😀"


@pytest.mark.parametrize("name", ["other", "", "../../etc/passwd", "fake ", "FAKE", "a`b\r\n\x1b[31m", "模型"])
async def test_an_unknown_model_is_404(api: Api, name: str) -> None:
    for path, body in ((COMPLETIONS, {"prompt": "hi"}), (CHAT, a_chat())):
        error = error_of(await api.http.post(path, json=body | {"model": name}), 404)
        assert error["code"] == "model_not_found"
        assert error["param"] == "model"
        assert error["message"].endswith("` does not exist.")
    assert "`other`" in error_of(await api.http.get("/v1/models/other"), 404)["message"]
    assert api.engine.submitted == []


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"prompt": [1] * 500, "max_tokens": 13}, "you requested 513 tokens (500 in the prompt, 13 in the completion)"),
        ({"prompt": [1] * 512}, "you requested 512 tokens in the prompt"),
        ({"prompt": "x" * 512}, "you requested 512 tokens in the prompt"),
        ({"prompt": "x" * 100_000}, "you requested at least"),
        ({"prompt": [[1], [1] * 600]}, "you requested 600 tokens in the prompt"),
        ({"max_tokens": 10**9}, "you requested 1000000002 tokens"),
        ({"max_tokens": 10**400}, "you requested 1000000"),
    ],
)
async def test_a_request_too_long_for_the_model_says_so_as_openai_does(api: Api, fields: Body, says: str) -> None:
    response = await api.http.post(COMPLETIONS, json={"model": "fake", "prompt": "hi"} | fields)
    error = error_of(response)
    assert error["message"].startswith(f"This model's maximum context length is {MAX_MODEL_LEN} tokens. However, ")
    assert says in error["message"]
    assert error["code"] == "context_length_exceeded"
    assert api.engine.submitted == []


async def test_a_request_that_fits_exactly_is_accepted(api: Api) -> None:
    answer = await api.complete(prompt=[65] * (MAX_MODEL_LEN - 1), max_tokens=1)
    assert answer["usage"]["total_tokens"] == MAX_MODEL_LEN


@pytest.mark.parametrize("content_type", ["text/plain", "multipart/form-data", "", "application/jsonp"])
async def test_threat_15_only_json_is_read(api: Api, content_type: str) -> None:
    body = json.dumps(a_chat()).encode()
    error = error_of(await api.http.post(CHAT, content=body, headers={"content-type": content_type}), 415)
    assert error["message"] == "The content type must be application/json."


async def test_a_content_type_may_have_a_parameter(api: Api) -> None:
    headers = {"content-type": "Application/JSON; charset=utf-8"}
    assert (await api.http.post(CHAT, content=json.dumps(a_chat()), headers=headers)).status_code == 200


async def test_threat_8_a_large_body_is_refused_declared_or_not(chat_ml: ChatTemplate) -> None:
    async def in_chunks() -> Any:
        for _ in range(100):
            yield b" " * 100

    async with open_api(chat_template=chat_ml, limits=RequestLimits(max_body_bytes=5000)) as api:
        for content in (b" " * 5001, in_chunks()):
            error = error_of(await api.http.post(CHAT, content=content, headers=JSON), 413)
            assert "5000 bytes" in error["message"]
        assert (await api.http.post(CHAT, json=a_chat("x" * 300))).status_code == 200


async def test_a_route_or_method_that_is_not_there_has_the_same_form_of_error(api: Api) -> None:
    assert error_of(await api.http.get("/v2/models"), 404)["message"] == "There is no such route."
    assert error_of(await api.http.get(CHAT), 405)["message"] == "This route does not support this method."
    for path, methods in (
        (CHAT, "POST"),
        ("/v1/batches", "GET, POST"),
        ("/v1/files/x", "DELETE, GET"),
        ("/livez", "GET, HEAD"),
    ):
        response = await api.http.put(path)
        assert (response.status_code, response.headers["allow"]) == (405, methods)
    assert error_of(await api.http.get("/v1/models/x/y/", follow_redirects=False), 404)


async def test_a_model_without_a_chat_template_refuses_chats_only() -> None:
    async with open_api() as api:
        error = error_of(await api.http.post(CHAT, json=a_chat()))
        assert error["message"] == "This model has no chat template; use /v1/completions."
        assert (await api.complete())["choices"][0]["text"] == "Hello!"


async def test_threat_2_errors_quote_values_short_and_in_ascii(api: Api) -> None:
    long_name = "k" * 5000 + "\x1b[31m\r\n"
    for fields in ({long_name: 1}, {"temperature": "x" * 5000}, {"stop": {"a": "é" * 5000}}):
        error = error_of(await api.http.post(COMPLETIONS, json={"model": "fake", "prompt": "hi"} | fields))
        assert "\x1b" not in error["message"]
        assert "\n" not in error["message"]
