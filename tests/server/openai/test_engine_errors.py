"""When the engine fails, the client leaves or does not read: a clear end for this request and none for the others."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from caravan.server.generation.request_limits import RequestLimits
from caravan.server.sandbox.chat_template import ChatTemplate
from tests.server.openai.api import CHAT, COMPLETIONS, Api, a_chat, events_in, open_api, text_of
from tests.server.openai.asgi import AsgiRequest
from tests.support.fakes import echoes
from tests.support.waiting import until

TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
LONG = {"model": "fake", "prompt": "hi", "max_tokens": 400}


@pytest.fixture
async def endless(chat_ml: ChatTemplate) -> AsyncIterator[Api]:
    """A front end whose engine takes a millisecond for each of many tokens."""
    async with open_api(echoes(), chat_template=chat_ml, limits=RequestLimits(write_timeout_seconds=0.2)) as api:
        api.engine.seconds_per_token = 0.001
        yield api


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
async def test_an_engine_that_is_not_ready_is_503_with_retry_after(api: Api, path: str, stream: bool) -> None:
    api.engine.is_ready = False
    response = await api.http.post(path, json=(a_chat() if path == CHAT else LONG) | {"stream": stream})
    assert response.status_code == 503
    assert response.headers["retry-after"] == "5"
    error = response.json()["error"]
    assert (error["type"], error["code"]) == ("server_error", "unavailable")
    for route in ("/readyz", "/health"):
        assert (await api.http.get(route)).status_code == 503
    assert (await api.http.get("/livez")).json() == {"status": "live"}


@pytest.mark.parametrize("stream", [False, True])
async def test_an_engine_that_dies_before_the_first_token_is_a_plain_503(api: Api, stream: bool) -> None:
    api.engine.dies_after = 0
    response = await api.http.post(COMPLETIONS, json=LONG | {"stream": stream})
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "unavailable"
    assert api.sample("request_incomplete_total", finished_reason="error") == 1


async def test_an_engine_that_dies_in_a_stream_ends_it_with_an_error_event_and_done(endless: Api) -> None:
    endless.engine.dies_after = 4
    events = await endless.stream(COMPLETIONS)
    assert text_of(events[:-1]) == "hihi"
    error = events[-1]["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["code"]) == ("server_error", "unavailable")


async def test_an_error_of_one_choice_ends_the_whole_stream(endless: Api) -> None:
    endless.engine.dies_after = 4
    events = await endless.stream(CHAT, n=3, stream_options={"include_usage": True})
    assert [event for event in events if "error" in event] == events[-1:]
    assert all("usage" not in event for event in events)
    assert endless.engine.num_running == 0


@pytest.mark.parametrize("stream", [False, True])
async def test_an_error_message_of_the_engine_is_logged_and_not_returned(
    endless: Api, stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    endless.engine.fails_after = 3
    response = await endless.http.post(COMPLETIONS, json=LONG | {"stream": stream})
    assert response.status_code == (200 if stream else 500)
    error = events_in(response.text)[-1]["error"] if stream else response.json()["error"]
    assert (error["type"], error["code"]) == ("server_error", "internal_error")
    assert "secret" not in response.text
    assert "a secret of the engine" in caplog.text


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("after", "status"), [(0, 400), (3, 200)])
@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        (COMPLETIONS, {"regex": "[a-z]+", "n": 2}, "regex"),
        (COMPLETIONS, {"grammar": 'start: "a"'}, "grammar"),
        (CHAT, {"response_format": {"type": "json_object"}}, "response_format"),
        (CHAT, {"tools": [TOOL], "tool_choice": "required"}, "tools"),
        ("/v1/responses", {"text": {"format": {"type": "json_object"}}}, "text.format"),
    ],
)
async def test_threat_31_a_grammar_that_the_engine_cannot_use_is_400_and_names_its_field(
    endless: Api,
    caplog: pytest.LogCaptureFixture,
    stream: bool,
    after: int,
    status: int,
    path: str,
    fields: dict[str, Any],
    param: str,
) -> None:
    endless.engine.fails_after = after
    endless.engine.refuses_grammar = True
    bases = {CHAT: a_chat(), COMPLETIONS: LONG, "/v1/responses": {"model": "fake", "input": "hi"}}
    response = await endless.http.post(path, json=bases[path] | fields | {"stream": stream})
    if stream and status == 200:
        assert response.status_code == 200
        assert f"`{param}` cannot be used: it is too complex." in response.text
        assert "response.failed" in response.text or f'"param":"{param}"' in response.text
    else:
        assert response.status_code == 400
        error = response.json()["error"]
        assert (error["type"], error["param"]) == ("invalid_request_error", param)
        assert error["message"] == f"`{param}` cannot be used: it is too complex."
    assert [record.getMessage() for record in caplog.records if record.levelname != "INFO"] == [
        "The engine cannot use a request's grammar: it is too complex."
    ]
    assert endless.engine.num_running == 0


async def test_threat_13_an_internal_error_is_a_500_without_details(
    api: Api, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def submit(*_: object, **__: object) -> None:
        raise KeyError("/secret/path")

    monkeypatch.setattr(api.engine, "submit", submit)
    response = await api.http.post(COMPLETIONS, json=LONG)
    assert response.status_code == 500
    assert response.json()["error"]["message"] == "The server failed to handle this request; the cause is in its log."
    assert "x-request-id" in response.headers
    assert "/secret/path" in caplog.text


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("n", [1, 3])
async def test_threat_11_a_client_that_leaves_ends_the_engines_work(endless: Api, stream: bool, n: int) -> None:
    request = AsgiRequest(endless.app, COMPLETIONS, LONG | {"stream": stream, "n": n})
    await until(lambda: endless.engine.num_produced > 20)
    assert (request.status == 200) == stream
    request.leave()
    await request.end()
    assert sorted(endless.engine.aborted) == list(range(1, n + 1))
    assert endless.engine.num_running == 0
    assert endless.sample("request_incomplete_total", finished_reason="abort") == n


async def test_threat_11_a_client_that_leaves_before_the_first_token_ends_the_engines_work(endless: Api) -> None:
    endless.engine.released.clear()
    for stream in (False, True):
        request = AsgiRequest(endless.app, COMPLETIONS, LONG | {"stream": stream})
        await until(lambda: endless.engine.num_running == 1)
        request.leave()
        await request.end()
        assert request.status != 200
        await until(lambda: endless.engine.num_running == 0)


async def test_threat_9_a_client_that_does_not_read_is_cut_off(endless: Api) -> None:
    request = AsgiRequest(endless.app, COMPLETIONS, LONG | {"stream": True})
    await until(lambda: len(request.sent) > 3)
    request.reads.clear()
    await request.end()
    assert not request.is_complete  # uvicorn then closes the connection
    assert endless.engine.aborted == [1]


async def test_threat_9_a_client_that_reads_slowly_gets_everything(endless: Api) -> None:
    request = AsgiRequest(endless.app, COMPLETIONS, LONG | {"stream": True, "max_tokens": 300})
    while not request.is_complete:
        request.reads.clear()
        await asyncio.sleep(0.05)  # less than the write timeout
        request.reads.set()
        await asyncio.sleep(0.01)
    assert text_of(events_in(request.body)) == "hi" * 150


async def test_no_header_is_sent_before_the_first_token(endless: Api) -> None:
    endless.engine.released.clear()
    request = AsgiRequest(endless.app, CHAT, a_chat() | {"stream": True, "max_tokens": 2})
    await until(lambda: endless.engine.num_running == 1)
    await asyncio.sleep(0.02)
    assert request.sent == []
    endless.engine.released.set()
    await request.end()
    assert request.is_complete
    assert request.status == 200


async def test_threat_8_a_body_that_does_not_arrive_is_408(chat_ml: ChatTemplate) -> None:
    async def trickle() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.sleep(5)

    async with open_api(chat_template=chat_ml, limits=RequestLimits(body_timeout_seconds=0.05)) as api:
        response = await api.http.post(CHAT, content=trickle(), headers={"content-type": "application/json"})
        assert response.status_code == 408
        assert "0.05 seconds" in response.json()["error"]["message"]


async def test_many_clients_at_once_get_their_own_answers(endless: Api) -> None:
    prompts = [f"number {index} " for index in range(40)]
    answers = await asyncio.gather(*(endless.complete(prompt=prompt, max_tokens=30) for prompt in prompts))
    for prompt, answer in zip(prompts, answers, strict=True):
        assert answer["choices"][0]["text"] == (prompt * 4)[:30]
