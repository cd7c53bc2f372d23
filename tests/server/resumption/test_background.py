"""Responses in the background: `background` of POST /v1/responses, and the routes for them."""

import asyncio
import json
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send

from caravan.server.http.api_keys import ApiKeys
from caravan.server.http.errors import ApiError
from caravan.server.openai.background import BackgroundResponse, open_background
from caravan.server.resumption.settings import ResumeLimits
from caravan.server.sandbox.chat_template import ChatTemplate
from tests.server.openai.api import Api, Body, answered, open_api
from tests.server.openai.asgi import AsgiRequest
from tests.support.responses_events import RESPONSES
from tests.support.resuming_client import RESUME, payloads, text_of, whole_events
from tests.support.waiting import until

BODY = {"model": "fake", "input": "hi", "background": True}


async def begun(api: Api, **fields: Any) -> tuple[AsgiRequest, Body]:
    """Return a request in the background, and the response as it was returned."""
    request = AsgiRequest(api.app, RESPONSES, BODY | fields)
    await until(lambda: request.body)
    assert request.status == 200, request.body
    return request, json_of(request)


def json_of(request: AsgiRequest) -> Body:
    body: Body = json.loads(request.body)
    return body


async def retrieved(api: Api, response_id: str) -> Body:
    return answered(await api.http.get(f"{RESPONSES}/{response_id}"))


def text_in(response: Body) -> str:
    return "".join(part["text"] for item in response["output"] for part in item["content"])


async def test_a_background_response_is_returned_at_once_and_can_be_retrieved(api: Api) -> None:
    api.engine.released.clear()
    request, queued = await begun(api)
    assert (queued["status"], queued["background"], queued["output"]) == ("queued", True, [])
    assert (await retrieved(api, queued["id"]))["status"] == "queued"
    request.leave()
    api.engine.released.set()
    await request.end()
    response = await retrieved(api, queued["id"])
    assert (response["status"], response["id"]) == ("completed", queued["id"])
    assert text_in(response) == "Hello!"
    assert response["usage"]["output_tokens"] == 7
    assert api.engine.aborted == []


async def test_a_background_response_is_found_before_its_generation_starts(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = asyncio.Event()

    async def late(response: BackgroundResponse, scope: Scope, receive: Receive, send: Send) -> None:
        await start.wait()
        await respond(response, scope, receive, send)

    respond = BackgroundResponse._respond
    monkeypatch.setattr(BackgroundResponse, "_respond", late)
    request, queued = await begun(api)
    assert (await retrieved(api, queued["id"]))["status"] == "queued"
    start.set()
    await request.end()
    assert (await retrieved(api, queued["id"]))["status"] == "completed"


async def test_a_background_response_is_in_progress_while_it_runs(api: Api) -> None:
    api.engine.seconds_per_token = 0.02
    request, queued = await begun(api)
    seen: set[str] = set()
    while not seen & {"completed"}:
        seen.add((await retrieved(api, queued["id"]))["status"])
        await asyncio.sleep(0.005)
    assert seen == {"queued", "in_progress", "completed"}
    await request.end()


async def test_the_events_of_a_background_response_can_be_read_from_an_offset(api: Api) -> None:
    api.engine.seconds_per_token = 0.002
    streamed = AsgiRequest(api.app, RESPONSES, BODY | {"stream": True})
    await streamed.end()
    events = whole_events(streamed.body)
    assert text_of(events) == "Hello!"
    response_id = payloads(events)[0]["response"]["id"]
    path = f"{RESPONSES}/{response_id}"
    assert whole_events((await api.http.get(path, params={"stream": "true"})).text) == events
    for _, number in zip(events, range(len(events) - 1), strict=False):
        rest = await api.http.get(path, params={"stream": "true", "starting_after": number})
        assert whole_events(rest.text) == events[number + 1 :]
        assert f'"sequence_number":{number + 1},' in rest.text.split("\n\n")[0]
    last = await api.http.get(path, params={"stream": "true", "starting_after": len(events) - 1})
    assert last.status_code == 204
    assert (await retrieved(api, response_id))["status"] == "completed"


async def test_a_background_stream_goes_on_without_its_client(api: Api) -> None:
    api.engine.seconds_per_token = 0.005
    streamed = AsgiRequest(api.app, RESPONSES, BODY | {"stream": True})
    await until(lambda: whole_events(streamed.body))
    streamed.leave()
    response_id = payloads(whole_events(streamed.body))[0]["response"]["id"]
    await streamed.end()
    assert text_in(await retrieved(api, response_id)) == "Hello!"


async def test_a_background_response_can_be_cancelled(api: Api) -> None:
    api.engine.released.clear()
    request, queued = await begun(api)
    await until(lambda: api.engine.submitted)
    cancelled = answered(await api.http.post(f"{RESPONSES}/{queued['id']}/cancel"))
    assert (cancelled["id"], cancelled["status"]) == (queued["id"], "cancelled")
    await request.end()
    assert len(api.engine.aborted) == 1
    assert (await retrieved(api, queued["id"]))["status"] == "cancelled"
    again = answered(await api.http.post(f"{RESPONSES}/{queued['id']}/cancel"))
    assert again["status"] == "cancelled"


async def test_a_complete_response_stays_complete_when_it_is_cancelled(api: Api) -> None:
    request, queued = await begun(api)
    await request.end()
    assert answered(await api.http.post(f"{RESPONSES}/{queued['id']}/cancel"))["status"] == "completed"


async def test_a_background_response_can_be_deleted(api: Api) -> None:
    api.engine.released.clear()
    request, queued = await begun(api)
    deleted = answered(await api.http.delete(f"{RESPONSES}/{queued['id']}"))
    assert deleted == {"id": queued["id"], "object": "response", "deleted": True}
    await request.end()
    for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/cancel")):
        assert (await api.http.request(method, f"{RESPONSES}/{queued['id']}{path}")).status_code == 404


async def test_retrieving_a_response_keeps_it(chat_ml: ChatTemplate) -> None:
    async with open_api(chat_template=chat_ml, resume_limits=ResumeLimits(idle_seconds=0.3)) as api:
        api.engine.released.clear()
        request, queued = await begun(api)
        for _ in range(5):
            await asyncio.sleep(0.1)
            assert (await retrieved(api, queued["id"]))["status"] == "queued"
        assert api.engine.aborted == []
        await request.end()  # nobody asks any more
        assert len(api.engine.aborted) == 1
        assert (await api.http.get(f"{RESPONSES}/{queued['id']}")).status_code == 404


async def test_a_failed_background_response_says_so(api: Api) -> None:
    api.engine.dies_after = 2
    request, queued = await begun(api)
    await request.end()
    failed = await retrieved(api, queued["id"])
    assert (failed["status"], failed["error"]["code"]) == ("failed", "unavailable")
    api.engine.dies_after = 0
    request, queued = await begun(api)
    await request.end()
    refused = await api.http.get(f"{RESPONSES}/{queued['id']}")
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "unavailable")


async def test_errors_of_the_request_are_those_of_its_post(api: Api) -> None:
    for fields in ({"input": ""}, {"max_output_tokens": 10**6}):
        assert (await api.http.post(RESPONSES, json=BODY | fields)).status_code == 400
    both = await api.http.post(RESPONSES, json=BODY, headers=RESUME)
    assert (both.status_code, both.json()["error"]["param"]) == (400, "background")
    late = await api.http.post(RESPONSES, json=BODY, headers={"x-request-timeout-ms": "x"})
    assert late.status_code == 400
    assert api.sample("resumable_responses") == 0


async def test_a_response_that_cannot_be_admitted_is_not_kept(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ValueError("no generation")

    monkeypatch.setattr("caravan.server.openai.responses.generation_of", refuse)
    assert (await api.http.post(RESPONSES, json=BODY)).status_code == 500
    assert api.sample("resumable_responses") == 0


async def test_only_background_responses_can_be_retrieved_by_these_routes(api: Api) -> None:
    posted = await api.http.post(RESPONSES, json={"model": "fake", "input": "hi"}, headers=RESUME)
    assert (await api.http.get(f"{RESPONSES}/{posted.json()['id']}")).status_code == 404
    assert "background" not in posted.json()


@pytest.mark.parametrize(
    "query", ["stream=1", "starting_after=x", "starting_after=0", "starting_after=1&starting_after=2"]
)
async def test_a_wrong_parameter_is_400(api: Api, query: str) -> None:
    request, queued = await begun(api)
    await request.end()
    response = await api.http.get(f"{RESPONSES}/{queued['id']}?{query}")
    assert (response.status_code, response.json()["error"]["param"]) == (400, query.partition("=")[0])


async def test_threat_37_another_key_does_not_see_a_background_response(chat_ml: ChatTemplate) -> None:
    keys = {"alice": "secret-of-alice", "bob": "secret-of-bob"}
    alice, bob = ({"authorization": f"Bearer {key}"} for key in keys.values())
    async with open_api(chat_template=chat_ml, keys=ApiKeys(keys)) as api:
        hers = (await api.http.post(RESPONSES, json=BODY, headers=alice)).json()
        for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/cancel")):
            url = f"{RESPONSES}/{hers['id']}{path}"
            assert (await api.http.request(method, url, headers=bob)).status_code == 404
        assert (await api.http.get(f"{RESPONSES}/{hers['id']}", headers=alice)).json()["status"] == "completed"


def test_a_line_of_a_batch_cannot_be_in_the_background() -> None:
    with pytest.raises(ApiError, match="cannot be used in a batch"):
        open_background(None, {})
