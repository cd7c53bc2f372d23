"""The limits of kept responses: number, bytes, ids; and how they end."""

import asyncio
import json
import re
from collections.abc import AsyncIterator

import pytest
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from caravan.server.generation.cancellation import Cancellation
from caravan.server.generation.context import SCOPE_KEY_NAME, SCOPE_REQUEST_ID
from caravan.server.generation.request_limits import RequestLimits
from caravan.server.http.api_keys import ApiKeys
from caravan.server.http.disconnect import until_disconnect
from caravan.server.http.errors import ApiError
from caravan.server.resumption.kept_responses import KeptResponses
from caravan.server.resumption.resumption import Resumption, keep
from caravan.server.resumption.settings import ResumeLimits, ResumeSettings
from caravan.server.sandbox.chat_template import ChatTemplate
from tests.server.openai.api import COMPLETIONS, Api, Body, a_chat, open_api
from tests.server.openai.asgi import AsgiRequest
from tests.support.fakes import says
from tests.support.resuming_client import RESUME, payloads, whole_events
from tests.support.waiting import until

BODY = {"model": "fake", "prompt": "hi", "stream": True}


def stream_of(name: str) -> str:
    return f"/v1/requests/{name}/stream"


def started(api: Api, name: str, **headers: str) -> AsgiRequest:
    return AsgiRequest(api.app, COMPLETIONS, BODY, headers=RESUME | {"x-request-id": name} | headers)


@pytest.fixture
async def small(chat_ml: ChatTemplate) -> AsyncIterator[Api]:
    """A front end that keeps two responses of 1,000 bytes each, more or less."""
    limits = ResumeLimits(max_streams=2, max_bytes=2000)
    async with open_api(says("A long answer of many tokens"), chat_template=chat_ml, resume_limits=limits) as api:
        yield api


async def test_a_response_beyond_the_number_is_429_while_the_others_run(small: Api) -> None:
    small.engine.released.clear()
    running = [started(small, name) for name in ("one", "two")]
    await until(lambda: len(small.engine.submitted) == 2)
    refused = started(small, "three")
    await refused.end()
    assert refused.status == 429
    assert "2 resumable responses" in refused.body
    assert small.sample("admission_rejections_total", reason="resumable_responses") == 1
    plain = AsgiRequest(small.app, COMPLETIONS, BODY)  # which needs no place
    small.engine.released.set()
    for one in (*running, plain):
        await one.end()
        assert one.status == 200


async def test_the_oldest_finished_response_makes_room(small: Api) -> None:
    for name in ("one", "two", "three"):
        await started(small, name).end()
    statuses = [(await small.http.get(stream_of(name))).status_code for name in ("one", "two", "three")]
    assert statuses[0] == 404
    assert small.sample("resumable_responses") == 2


async def test_finished_responses_of_the_key_with_most_make_room(chat_ml: ChatTemplate) -> None:
    keys = {"alice": "secret-of-alice", "bob": "secret-of-bob"}
    alice, bob = ({"authorization": f"Bearer {key}"} for key in keys.values())
    async with open_api(keys=ApiKeys(keys), resume_limits=ResumeLimits(max_streams=3)) as api:
        for name, key in (("b1", bob), ("a1", alice), ("a2", alice), ("a3", alice)):
            await started(api, name, **key).end()
        assert (await api.http.get(stream_of("b1"), headers=bob)).status_code == 200
        assert (await api.http.get(stream_of("a1"), headers=alice)).status_code == 404


async def test_the_first_events_of_a_long_response_are_dropped_and_asking_for_them_is_410(small: Api) -> None:
    small.engine.seconds_per_token = 0.002
    request = started(small, "one")
    await request.end()
    events = whole_events(request.body)
    assert sum(len(f"id: {number}\n{rest}\n\n") for number, rest in events) > 2000
    gone = await small.http.get(stream_of("one"))
    assert gone.status_code == 410
    assert gone.json()["error"]["code"] == "events_dropped"
    last = len(events) - 1
    kept = await small.http.get(stream_of("one"), params={"after": last - 1})
    assert whole_events(kept.text) == events[last - 1 :]
    assert small.sample("resumable_bytes") <= 1000


async def test_a_reader_that_is_too_slow_for_the_memory_is_disconnected(small: Api) -> None:
    request = started(small, "one")
    request.reads.clear()
    await until(lambda: small.engine.submitted and small.engine.num_running == 0)
    await asyncio.sleep(0.01)
    request.reads.set()
    await request.end()
    assert request.status == 200
    assert not request.is_complete


async def test_a_server_may_keep_none(chat_ml: ChatTemplate) -> None:
    async with open_api(chat_template=chat_ml, resume_limits=ResumeLimits(max_streams=0)) as api:
        refused = await api.http.post(COMPLETIONS, json=BODY, headers=RESUME)
        assert refused.status_code == 400
        assert "--resume-streams 0" in refused.json()["error"]["message"]
        assert (await api.http.post(COMPLETIONS, json=BODY)).status_code == 200


async def test_a_request_id_whose_response_is_kept_is_409(api: Api) -> None:
    api.engine.released.clear()
    first = started(api, "mine")
    await until(lambda: api.engine.submitted)
    second = started(api, "mine")
    await second.end()
    assert second.status == 409
    assert "request_id_in_use" in second.body
    api.engine.released.set()
    await first.end()
    third = started(api, "mine")
    await third.end()
    assert third.status == 409
    assert (await api.http.get(stream_of("mine"))).text == first.body
    assert (await api.http.delete("/v1/requests/mine")).status_code == 204
    fourth = started(api, "mine")
    await fourth.end()
    assert fourth.status == 200


async def test_a_body_that_exceeds_its_share_of_the_memory_is_not_kept_without_a_reader() -> None:
    async with open_api(says("x"), resume_limits=ResumeLimits(max_streams=4, max_bytes=1000)) as api:
        texts = {"model": "fake", "input": ["a"] * 100}
        headers = {"x-caravan-resume": "1", "x-request-id": "large"}
        answer = await api.http.post("/v1/embeddings", json=texts, headers=headers)
        assert len(answer.json()["data"]) == 100
        assert (await api.http.get(stream_of("large"))).status_code == 404


async def test_a_cancelled_response_ends_for_readers_that_connect_again(api: Api) -> None:
    api.engine.seconds_per_token = 0.02
    body = {"model": "fake", "input": "hi", "background": True, "stream": True}
    request = AsgiRequest(api.app, "/v1/responses", body)
    await until(lambda: whole_events(request.body))
    name = json.loads(whole_events(request.body)[0][1].partition("data: ")[2])["response"]["id"]
    cancelled = (await api.http.post(f"/v1/responses/{name}/cancel")).json()
    assert cancelled["status"] == "cancelled"
    await request.end()
    last = payloads(whole_events(request.body))[-1]
    assert (last["type"], last["response"]) == ("response.failed", cancelled)
    assert last["response"]["error"] is None
    number = len(whole_events(request.body))
    again = await api.http.get(f"/v1/responses/{name}?stream=true", headers={"last-event-id": str(number)})
    assert again.status_code == 204


ENDS = {  # of a stream that another request has ended
    "/v1/completions": '"code":"response_ended"}}\n\nid: NUMBER\ndata: [DONE]\n\n',
    "/v1/chat/completions": '"code":"response_ended"}}\n\nid: NUMBER\ndata: [DONE]\n\n',
    "/v1/responses": '"status":"cancelled"',
    "/v1/messages": 'event: error\ndata: {"type":"error",',
    "/api/generate": '{"error":"The response was ended by another request."}\n',
}


@pytest.mark.parametrize("path", ENDS)
async def test_delete_ends_a_running_response_with_the_last_event_of_its_form(chat_ml: ChatTemplate, path: str) -> None:
    async with open_api(says("Hello! " * 50), chat_template=chat_ml) as api:
        await check_deleted(api, path)


async def check_deleted(api: Api, path: str) -> None:
    api.engine.seconds_per_token = 0.01
    body: Body = {"model": "fake", "max_tokens": 100, "stream": True}
    body |= {"input": "hi"} if path.endswith("responses") else {}
    body |= {"prompt": "hi"} if path.endswith(("generate", "v1/completions")) else {}
    body |= a_chat() if "chat" in path or "messages" in path else {}
    if path.startswith("/api") or "responses" in path:
        del body["max_tokens"]
    request = AsgiRequest(api.app, path, body, headers=RESUME | {"x-request-id": "mine"})
    await until(lambda: request.body.count("\n") > 4)
    reader = AsgiRequest(api.app, stream_of("mine"), None)
    late = AsgiRequest(api.app, stream_of("mine"), None)
    late.reads.clear()
    await until(lambda: reader.body)
    assert (await api.http.delete("/v1/requests/mine")).status_code == 204
    late.reads.set()
    for one in (request, reader, late):
        await one.end()
        assert (one.status, one.is_complete) == (200, True)
        assert ENDS[path] in re.sub(r"id: \d+\ndata: \[", "id: NUMBER\ndata: [", one.body)
    assert len(api.engine.aborted) == 1
    assert (await api.http.get(stream_of("mine"))).status_code == 404
    assert (await api.http.delete("/v1/requests/mine")).status_code == 404
    assert api.sample("request_incomplete_total", finished_reason="abort") == 1


async def test_delete_drops_a_finished_response_and_ends_one_that_has_not_begun(api: Api) -> None:
    await started(api, "done").end()
    assert (await api.http.delete("/v1/requests/done")).status_code == 204
    assert (await api.http.get(stream_of("done"))).status_code == 404
    api.engine.released.clear()
    request = started(api, "waiting")
    await until(lambda: len(api.engine.submitted) == 2)
    reader = AsgiRequest(api.app, stream_of("waiting"), None)
    await asyncio.sleep(0.01)
    assert (await api.http.delete("/v1/requests/waiting")).status_code == 204
    for one in (reader, request):
        await one.end()
        assert one.status == 410
        assert '"code": "response_ended"' in one.body
    assert len(api.engine.aborted) == 1


async def test_a_request_that_is_ended_before_its_generation_is_410(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    encoding = asyncio.Event()

    async def prepared(*_: object) -> None:
        encoding.set()
        await until_disconnect(_[-1], nothing_more())  # type: ignore[arg-type]

    monkeypatch.setattr("caravan.server.openai.completions.prepared_completion", prepared)
    request = started(api, "mine")
    await encoding.wait()
    assert (await api.http.delete("/v1/requests/mine")).status_code == 204
    await request.end()
    assert request.status == 410
    assert api.engine.submitted == []


async def test_a_request_that_is_ended_before_its_body_is_there_is_410_when_it_comes(api: Api) -> None:
    headers = RESUME | {"x-request-id": "mine"}
    request = AsgiRequest(api.app, COMPLETIONS, BODY, headers=headers, sends_body=False)
    await asyncio.sleep(0.01)
    assert (await api.http.delete("/v1/requests/mine")).status_code == 204
    assert (await api.http.get(stream_of("mine"))).status_code == 404
    request.send_body()
    await request.end()
    assert request.status == 410


def test_a_generation_that_begins_after_the_cancellation_ends_at_once() -> None:
    ended = []
    cancellation = Cancellation()
    cancellation.cancel()
    assert not cancellation.has_generation
    cancellation.begin(lambda: ended.append(1))
    assert (ended, cancellation.has_generation) == ([1], True)


def scope_of(name: str, key_name: str = "", headers: list[tuple[bytes, bytes]] | None = None) -> Scope:
    return {
        "type": "http",
        "method": "POST",
        "headers": headers or [],
        SCOPE_REQUEST_ID: name,
        SCOPE_KEY_NAME: key_name,
    }


async def nothing_more() -> Message:
    return await asyncio.get_running_loop().create_future()


async def test_lines_of_json_are_counted_and_have_no_ids() -> None:
    lines = [b'{"a": %d}\n' % number for number in range(5)]

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        head = [(b"content-type", b"application/x-ndjson; charset=utf-8")]
        await send({"type": "http.response.start", "status": 200, "headers": head})
        for line in lines:
            await send({"type": "http.response.body", "body": line[:4], "more_body": True})
            await send({"type": "http.response.body", "body": line[4:], "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    responses = KeptResponses()
    resumption = Resumption(app, responses, RequestLimits())

    async def with_id(scope: Scope, receive: Receive, send: Send) -> None:
        scope[SCOPE_REQUEST_ID] = "mine"
        await resumption(scope, receive, send)

    request = AsgiRequest(with_id, "/", {"a": 1}, headers=RESUME)
    await request.end()
    assert request.body.encode() == b"".join(lines)
    kept = responses.find(scope_of("x"), "mine")
    assert kept is not None
    for after in range(6):
        kept.attach()

        async def read(scope: Scope, receive: Receive, send: Send, after: int = after) -> None:
            assert kept is not None
            await kept.response(after, RequestLimits(), kept.detach)(scope, receive, send)

        again = AsgiRequest(read, "/", None)
        await again.end()
        assert again.body.encode() == b"".join(lines[after:])
    kept.drop()


@pytest.mark.parametrize("is_started", [False, True])
async def test_an_application_that_fails_is_not_kept_or_cut(is_started: bool) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if is_started:
            head = [(b"content-type", b"text/event-stream")]
            await send({"type": "http.response.start", "status": 200, "headers": head})
            await send({"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True})
        raise RuntimeError("a failure of the application")

    responses = KeptResponses()
    scope, sent = scope_of("mine"), list[Message]()
    kept = responses.open(scope)

    async def send(message: Message) -> None:
        sent.append(message)

    with pytest.raises(RuntimeError, match="a failure"):
        await keep(kept, app, RequestLimits(), scope, nothing_more, send)
    assert bool(sent) == is_started
    assert all(message.get("more_body", True) for message in sent)
    assert (responses.find(scope, "mine") is not None) == is_started
    kept.drop()


async def test_a_client_that_leaves_within_its_body_ends_the_request() -> None:
    messages: list[Message] = [
        {"type": "http.request", "body": b"{", "more_body": True},
        {"type": "http.disconnect"},
    ]
    seen: list[Message] = []

    async def receive() -> Message:
        return messages.pop(0) if messages else await nothing_more()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        while not seen or seen[-1]["type"] != "http.disconnect":
            seen.append(await receive())
        await Response(status_code=499)(scope, receive, send)

    responses = KeptResponses()
    scope = scope_of("mine")
    expected = [*messages]
    await keep(responses.open(scope), app, RequestLimits(), scope, receive, ignored)
    assert seen == expected
    assert responses.num_responses == 0


async def test_a_cancelled_request_ends_its_application() -> None:
    ended = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await nothing_more()
        finally:
            ended.set()

    responses = KeptResponses()
    scope = scope_of("mine")
    task = asyncio.create_task(keep(responses.open(scope), app, RequestLimits(), scope, nothing_more, nothing_sent))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended.is_set()
    assert responses.num_responses == 0


async def nothing_sent(message: Message) -> None:
    raise AssertionError(message)


async def test_the_memory_of_all_responses_is_a_limit_too() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        await send({"type": "http.response.body", "body": b"data: " + b"x" * 5000 + b"\n\n", "more_body": True})
        await nothing_more()

    responses = KeptResponses(ResumeLimits(max_streams=4, max_bytes=4000))
    scope = scope_of("one")
    kept = responses.open(scope)
    task = asyncio.create_task(keep(kept, app, RequestLimits(), scope, nothing_more, ignored))
    await until(lambda: responses.num_bytes > 4000)  # the latest event is kept, whatever its length
    with pytest.raises(ApiError, match="memory for resumable responses is full"):
        responses.open(scope_of("two"))
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    kept.drop()
    responses.open(scope_of("two")).drop()


async def ignored(message: Message) -> None:
    pass


def test_the_options_are_the_limits() -> None:
    assert ResumeSettings.model_validate({}).resume_limits == ResumeLimits()
    given = ResumeSettings.model_validate({"resume_streams": 3, "resume_memory": "3MiB", "resume_seconds": "5m"})
    assert given.resume_limits == ResumeLimits(3, 3 * 2**20, 300.0)
    assert given.resume_limits.max_stream_bytes == 2**20


async def test_the_client_of_an_ended_body_learns_that_another_request_ended_it(api: Api) -> None:
    api.engine.released.clear()
    body = {"model": "fake", "prompt": "hi"}
    request = AsgiRequest(api.app, COMPLETIONS, body, headers=RESUME | {"x-request-id": "mine"})
    await until(lambda: api.engine.submitted)
    assert (await api.http.delete("/v1/requests/mine")).status_code == 204
    await request.end()
    assert request.status == 410
    assert "ended by another request" in request.body


async def test_a_background_stream_that_is_cancelled_before_its_first_event_is_kept_as_cancelled(api: Api) -> None:
    api.engine.released.clear()
    body = {"model": "fake", "input": "hi", "background": True, "stream": True}
    request = AsgiRequest(api.app, "/v1/responses", body, headers={"x-request-id": "mine"})
    await until(lambda: api.engine.submitted)
    cancelled = await api.http.post("/v1/responses/mine/cancel")
    assert cancelled.json()["status"] == "cancelled"
    await request.end()
    assert (await api.http.get("/v1/responses/mine")).json()["status"] == "cancelled"
