"""Errors of /v1/messages have Anthropic's form wherever they arise, and both headers of keys are taken."""

import pytest

from caravan.server.generation.request_limits import QueueLimits, RequestLimits
from caravan.server.http.api_keys import ApiKeys
from caravan.server.http.concurrency_limit import ConcurrencyLimit
from caravan.server.http.request_log import RequestLogging
from caravan.server.http.trusted_hosts import TrustedHosts
from caravan.server.messages.error_form import ANTHROPIC
from caravan.server.sandbox.chat_template import ChatTemplate
from tests.server.openai.api import CHAT, Api, a_chat, open_api
from tests.server.openai.asgi import AsgiRequest
from tests.support.message_events import COUNT, MESSAGES, PLAIN, error_of
from tests.support.waiting import until

KEY = "sesame-open"
PATHS = [MESSAGES, COUNT]


@pytest.mark.parametrize("path", PATHS)
async def test_both_headers_of_a_key_are_taken_and_a_wrong_one_is_an_authentication_error(
    chat_ml: ChatTemplate, path: str
) -> None:
    async with open_api(chat_template=chat_ml, keys=ApiKeys({"a": KEY})) as api:
        for headers in ({"x-api-key": KEY}, {"authorization": f"Bearer {KEY}"}):
            assert (await api.http.post(path, json=PLAIN, headers=headers)).status_code == 200
        for headers in ({}, {"x-api-key": "wrong-key"}, {"authorization": "Bearer wrong-key"}):
            response = await api.http.post(path, json=PLAIN, headers=headers)
            assert response.status_code == 401
            assert error_of(response.json())["type"] == "authentication_error"


@pytest.mark.parametrize("path", PATHS)
async def test_an_unknown_model_and_an_invalid_value_have_their_types(api: Api, path: str) -> None:
    unknown = await api.http.post(path, json=PLAIN | {"model": "claude"})
    assert unknown.status_code == 404
    assert error_of(unknown.json()) == {"type": "not_found_error", "message": "The model `claude` does not exist."}
    invalid = await api.http.post(path, json=PLAIN | {"messages": 5})
    assert invalid.status_code == 400
    assert error_of(invalid.json())["type"] == "invalid_request_error"
    for content, status in ((b"{", 400), (b"\xff", 400)):
        broken = await api.http.post(path, content=content, headers={"content-type": "application/json"})
        assert (broken.status_code, error_of(broken.json())["type"]) == (status, "invalid_request_error")
    assert (await api.http.post(path, content=b"{}")).status_code == 415


@pytest.mark.parametrize(("path", "status"), [(MESSAGES, 405), (COUNT, 405), (f"{MESSAGES}/batches", 404)])
async def test_another_method_and_another_path_have_the_form_of_the_api(api: Api, path: str, status: int) -> None:
    response = await api.http.get(path)
    assert response.status_code == status
    assert response.headers.get("allow") == ("POST" if status == 405 else None)
    error_of(response.json())
    assert "param" in (await api.http.get("/v1/messagesx")).json()["error"]


async def test_a_body_that_is_too_large_has_its_type(chat_ml: ChatTemplate) -> None:
    async with open_api(chat_template=chat_ml, limits=RequestLimits(max_body_bytes=10)) as api:
        response = await api.http.post(MESSAGES, json=PLAIN)
        assert response.status_code == 413
        assert error_of(response.json())["type"] == "request_too_large"


async def test_a_full_server_is_a_rate_limit_error(chat_ml: ChatTemplate) -> None:
    limit = ConcurrencyLimit(1)
    async with open_api(chat_template=chat_ml, concurrency_limit=limit) as api:
        limit.requests_by_key[""] = 1
        response = await api.http.post(MESSAGES, json=PLAIN)
        assert response.status_code == 429
        assert response.headers["retry-after"] == "1"
        assert error_of(response.json())["type"] == "rate_limit_error"


async def test_a_full_queue_and_a_deadline_are_rate_limit_errors(chat_ml: ChatTemplate) -> None:
    async with open_api(chat_template=chat_ml, queue_limits=QueueLimits(max_requests=1)) as api:
        api.engine.released.clear()
        running = [AsgiRequest(api.app, CHAT, a_chat()) for _ in range(70)]
        await until(lambda: api.engine.num_running >= 65)
        response = await api.http.post(MESSAGES, json=PLAIN)
        assert response.status_code == 429
        assert error_of(response.json())["type"] == "rate_limit_error"
        api.engine.released.set()
        for request in running:
            await request.end()
    async with open_api(chat_template=chat_ml) as api:
        api.engine.released.clear()
        response = await api.http.post(MESSAGES, json=PLAIN, headers={"x-request-timeout-ms": "20"})
        assert response.status_code == 429
        wrong = await api.http.post(MESSAGES, json=PLAIN, headers={"x-request-timeout-ms": "x"})
        assert error_of(wrong.json())["type"] == "invalid_request_error"


async def test_a_server_that_is_not_ready_or_shuts_down_is_overloaded(chat_ml: ChatTemplate) -> None:
    limit = ConcurrencyLimit(9)
    async with open_api(chat_template=chat_ml, concurrency_limit=limit) as api:
        api.engine.is_ready = False
        response = await api.http.post(MESSAGES, json=PLAIN)
        assert response.status_code == 503
        assert response.headers["retry-after"] == "5"
        assert error_of(response.json())["type"] == "overloaded_error"
        limit.close()
        response = await api.http.post(COUNT, json=PLAIN)
        assert (response.status_code, error_of(response.json())["type"]) == (503, "overloaded_error")


async def test_an_error_of_the_server_is_an_api_error(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    def submit(*_: object, **__: object) -> None:
        raise KeyError("/secret/path")

    monkeypatch.setattr(api.engine, "submit", submit)
    response = await api.http.post(MESSAGES, json=PLAIN)
    assert response.status_code == 500
    assert error_of(response.json())["type"] == "api_error"
    assert "secret" not in response.text


@pytest.mark.parametrize("stream", [False, True])
async def test_a_grammar_that_the_engine_cannot_use_names_its_field(api: Api, stream: bool) -> None:
    api.engine.fails_after = 0
    api.engine.refuses_grammar = True
    schema = {"format": {"type": "json_schema", "schema": {"type": "object"}}}
    response = await api.http.post(MESSAGES, json=PLAIN | {"stream": stream, "output_config": schema})
    assert response.status_code == 400
    assert error_of(response.json())["message"] == "`output_config.format` cannot be used: it is too complex."


async def test_a_host_that_is_not_trusted_gets_an_error_in_the_form_of_the_api(api: Api) -> None:
    guarded = RequestLogging(TrustedHosts(api.app, hosts=["else"]), metrics=api.metrics, forms=[ANTHROPIC])
    request = AsgiRequest(guarded, MESSAGES, PLAIN)
    await request.end()
    assert request.status == 421
    assert '"type": "invalid_request_error"' in request.body
    assert request.body.startswith('{"type": "error"')


@pytest.mark.parametrize("path", [*PATHS, f"{MESSAGES}/batches"])
async def test_answers_and_errors_have_the_id_of_the_request_under_both_names(api: Api, path: str) -> None:
    for body in (PLAIN, {}):
        response = await api.http.post(path, json=body, headers={"x-request-id": "mine"})
        assert response.headers["request-id"] == response.headers["x-request-id"] == "mine"
        assert response.is_success or response.json()["request_id"] == "mine"
    assert "request-id" not in (await api.http.post(CHAT, json=a_chat())).headers


async def test_the_first_request_of_claude_code_gets_an_empty_answer(api: Api) -> None:
    response = await api.http.head("/api/hello")
    assert (response.status_code, response.content) == (200, b"")
    wrong = await api.http.post("/api/hello", json={})
    assert wrong.status_code == 405
    assert wrong.headers["allow"] == "HEAD"
