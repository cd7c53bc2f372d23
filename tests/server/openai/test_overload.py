"""Responses of a server that is overloaded, past a time limit or shutting down."""

import asyncio
from typing import Any

import pytest

from caravan.server.generation.request_limits import QueueLimits
from caravan.server.http.concurrency_limit import ConcurrencyLimit
from caravan.server.sandbox.chat_template import ChatTemplate
from tests.server.openai.api import CHAT, COMPLETIONS, Api, a_chat, events_in, open_api
from tests.server.openai.asgi import AsgiRequest
from tests.support.fakes import echoes
from tests.support.waiting import until

LONG = {"model": "fake", "prompt": "hi", "max_tokens": 400}
EMBEDDINGS = "/v1/embeddings"
TIMEOUT = "x-request-timeout-ms"


async def hold(api: Api, num: int) -> list[AsgiRequest]:
    """Return requests that run in the engine and get no tokens."""
    api.engine.released.clear()
    requests = [AsgiRequest(api.app, COMPLETIONS, LONG) for _ in range(num)]
    await until(lambda: api.engine.num_running == num)
    return requests


def assert_overloaded(status: int, headers: Any, error: dict[str, Any]) -> None:
    assert status == 429
    assert 1 <= int(headers["retry-after"]) <= 120
    assert (error["type"], error["code"]) == ("rate_limit_error", "server_overloaded")
    assert error["message"].isascii()


@pytest.mark.slow
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", [COMPLETIONS, CHAT, EMBEDDINGS])
async def test_a_full_queue_is_429_with_retry_after(chat_ml: ChatTemplate, path: str, stream: bool) -> None:
    async with open_api(echoes(), chat_template=chat_ml, queue_limits=QueueLimits(max_requests=0)) as api:
        num_running = api.engine.config.max_num_seqs
        requests = await hold(api, num_running - 1)
        bodies = {CHAT: a_chat(), COMPLETIONS: LONG, EMBEDDINGS: {"model": "fake", "input": ["a", "b"]}}
        body = bodies[path] | ({"n": 2} if path != EMBEDDINGS else {}) | ({"stream": True} if stream else {})
        if path == EMBEDDINGS and stream:
            return
        refused = await api.http.post(path, json=body)
        assert_overloaded(refused.status_code, refused.headers, refused.json()["error"])
        assert api.sample("admission_rejections_total", reason="queue_full") == 1
        assert len(api.engine.submitted) == num_running - 1  # nothing of it was begun
        for request in requests:
            request.leave()
            await request.end()
        api.engine.released.set()
        assert (await api.http.post(path, json=body | {"stream": False} if stream else body)).status_code == 200


async def test_requests_are_counted_before_their_bodies_are_read(chat_ml: ChatTemplate) -> None:
    async with open_api(echoes(), chat_template=chat_ml, concurrency_limit=ConcurrencyLimit(max_requests=2)) as api:
        requests = await hold(api, 2)
        refused = await api.http.post(COMPLETIONS, content=b"no JSON at all")
        assert_overloaded(refused.status_code, refused.headers, refused.json()["error"])
        assert (await api.http.get("/livez")).status_code == 200
        assert (await api.http.get("/metrics")).status_code == 200
        requests[0].leave()
        await requests[0].end()
        assert (await api.http.post(COMPLETIONS, content=b"no JSON at all")).status_code == 415
        requests[1].leave()
        await requests[1].end()


async def test_a_server_that_shuts_down_answers_503_to_new_work_only(chat_ml: ChatTemplate) -> None:
    concurrency_limit = ConcurrencyLimit(max_requests=10)
    async with open_api(echoes(), chat_template=chat_ml, concurrency_limit=concurrency_limit) as api:
        concurrency_limit.close()
        for path in (COMPLETIONS, CHAT, EMBEDDINGS, "/tokenize"):
            refused = await api.http.post(path, json={})
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "unavailable")
            assert int(refused.headers["retry-after"]) > 0
        assert (await api.http.get("/readyz")).status_code == 503
        assert (await api.http.get("/livez")).status_code == 200
        assert (await api.http.get("/v1/models")).status_code == 200


@pytest.mark.slow
async def test_a_request_that_times_out_before_its_first_token_is_429(chat_ml: ChatTemplate) -> None:
    async with open_api(echoes(), chat_template=chat_ml) as api:
        api.engine.released.clear()
        for path, body in (
            (COMPLETIONS, LONG),
            (CHAT, a_chat() | {"stream": True}),
            ("/v1/responses", {"model": "fake", "input": "hi"}),
            (EMBEDDINGS, {"model": "fake", "input": "a"}),
        ):
            late = await api.http.post(path, json=body, headers={TIMEOUT: "1500"})
            assert_overloaded(late.status_code, late.headers, late.json()["error"])
            assert "within 1.5 s" in late.json()["error"]["message"]
        await until(lambda: api.engine.num_running == 0)


@pytest.mark.slow
async def test_a_stream_that_times_out_ends_with_an_error_and_done(chat_ml: ChatTemplate) -> None:
    async with open_api(echoes(), chat_template=chat_ml) as api:
        api.engine.seconds_per_token = 0.01
        response = await api.http.post(COMPLETIONS, json=LONG | {"stream": True}, headers={TIMEOUT: "1500"})
        events = events_in(response.text)
        assert len(events) > 2
        assert events[-1]["error"]["code"] == "server_overloaded"
        await until(lambda: api.engine.num_running == 0)


@pytest.mark.slow
async def test_a_response_within_its_time_limit_is_complete(chat_ml: ChatTemplate) -> None:
    async with open_api(echoes(), chat_template=chat_ml) as api:
        answer = await api.http.post(COMPLETIONS, json=LONG | {"max_tokens": 4}, headers={TIMEOUT: "1500"})
        assert answer.json()["choices"][0]["text"] == "hihi"
        await asyncio.sleep(1.55)  # past the limit


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "1e3", "", "9999999999", "soon"])
async def test_an_invalid_time_limit_is_400(api: Api, value: str) -> None:
    refused = await api.http.post(COMPLETIONS, json=LONG, headers={TIMEOUT: value})
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == TIMEOUT
    assert api.engine.submitted == []
