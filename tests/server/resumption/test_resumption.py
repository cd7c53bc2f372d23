"""Streams with `x-caravan-resume`: cut anywhere and read again, they are the undisturbed ones."""

import asyncio
import re
from typing import Any

import pytest

from caravan.server.http.api_keys import ApiKeys
from caravan.server.observe.http_record import HttpRecord
from caravan.server.resumption.settings import ResumeLimits
from caravan.server.sandbox.chat_template import ChatTemplate
from tests.server.openai.api import CHAT, COMPLETIONS, Api, a_chat, events_in, open_api
from tests.server.openai.api import text_of as text_of_chunks
from tests.server.openai.asgi import AsgiRequest
from tests.support.fakes import says
from tests.support.responses_events import RESPONSES
from tests.support.resuming_client import RESUME, payloads, text_of, whole_events
from tests.support.waiting import until

TEXT = "Grüße, 世界! \u2028 data: id: 3"
FORMS = {
    COMPLETIONS: {"model": "fake", "prompt": "hi", "max_tokens": 100},
    CHAT: a_chat() | {"stream_options": {"include_usage": True}},
    RESPONSES: {"model": "fake", "input": "hi"},
}


def stream_of(name: str) -> str:
    return f"/v1/requests/{name}/stream"


async def resumed(api: Api, name: str, after: int, **headers: str) -> list[tuple[int, str]]:
    """Return the events after event `after`, numbered as the server does."""
    response = await api.http.get(stream_of(name), params={"after": after}, headers=headers)
    assert response.status_code in (200, 204), response.text
    return whole_events(response.text)


def started(api: Api, path: str = COMPLETIONS, name: str = "mine", **fields: Any) -> AsgiRequest:
    """Return a resumable stream with the request id `name`."""
    return AsgiRequest(api.app, path, FORMS[path] | {"stream": True} | fields, headers=RESUME | {"x-request-id": name})


async def left_before_its_first_event(api: Api) -> AsgiRequest:
    """Return a resumable stream whose client has left; the engine has the request and gives no tokens."""
    api.engine.released.clear()
    request = started(api)
    await until(lambda: api.engine.submitted)
    request.leave()
    return request


def without_ids_and_times(text: str) -> str:
    """Return a stream in which all ids and times are the same."""
    text = re.sub(r'"(\w*id)":"[a-z]+[-_][0-9a-f]+"', r'"\1":"ID"', text)
    return re.sub(r'"(created\w*)":\d+', r'"\1":0', text)


@pytest.mark.parametrize("path", FORMS)
async def test_events_have_ids_and_are_otherwise_those_of_any_stream(chat_ml: ChatTemplate, path: str) -> None:
    async with open_api(says(TEXT), chat_template=chat_ml) as api:
        body = FORMS[path] | {"stream": True}
        plain = await api.http.post(path, json=body)
        kept = await api.http.post(path, json=body, headers=RESUME)
    assert not re.search("^id:", plain.text, re.MULTILINE)
    assert (kept.headers["x-caravan-resume"], "x-caravan-resume" in plain.headers) == ("1", False)
    assert kept.headers["content-type"] == plain.headers["content-type"]
    events = whole_events(kept.text)
    assert text_of(events) == TEXT
    joined = "".join(f"{rest}\n\n" for _, rest in events)
    assert without_ids_and_times(joined) == without_ids_and_times(plain.text)


@pytest.mark.parametrize("path", FORMS)
async def test_a_stream_that_is_cut_at_any_byte_and_resumed_is_the_undisturbed_one(
    chat_ml: ChatTemplate, path: str
) -> None:
    async with open_api(says(TEXT), chat_template=chat_ml) as api:
        api.engine.seconds_per_token = 0.001
        headers = RESUME | {"x-request-id": "mine"}
        whole = (await api.http.post(path, json=FORMS[path] | {"stream": True}, headers=headers)).text
        undisturbed = whole_events(whole)
        assert len(undisturbed) > 10
        rests = {}
        for after in range(len(undisturbed) + 1):
            rests[after] = await resumed(api, "mine", after)
        for num_bytes in range(len(whole.encode()) + 1):
            got = whole_events(whole.encode()[:num_bytes].decode(errors="ignore"))
            assert got + rests[got[-1][0] if got else 0] == undisturbed


@pytest.mark.parametrize("path", FORMS)
@pytest.mark.parametrize("num_cuts", [1, 3, 7])
async def test_a_running_stream_whose_connection_is_cut_several_times_has_every_event_once(
    chat_ml: ChatTemplate, path: str, num_cuts: int
) -> None:
    async with open_api(says(TEXT), chat_template=chat_ml) as api:
        api.engine.seconds_per_token = 0.002
        client = first = started(api, path)
        got: list[tuple[int, str]] = []
        for number in range(num_cuts):
            await until(lambda: len(whole_events(client.body)) >= 2 or client.is_complete or client.status == 204)  # noqa: B023
            client.leave()
            if number:
                await client.end()
            got += whole_events(client.body)
            query = f"after={got[-1][0]}"
            client = AsgiRequest(api.app, stream_of("mine"), None, query=query)
        await client.end()
        got += whole_events(client.body)
        assert text_of(got) == TEXT
        assert got == await resumed(api, "mine", 0)
        await first.end()
        assert api.engine.aborted == []


async def test_a_client_that_leaves_before_the_first_event_can_resume(api: Api) -> None:
    request = await left_before_its_first_event(api)
    await asyncio.sleep(0.01)
    again = AsgiRequest(api.app, stream_of("mine"), None)
    await asyncio.sleep(0.01)
    assert again.sent == []
    api.engine.released.set()
    await again.end()
    assert text_of(whole_events(again.body)) == "Hello!"
    await request.end()
    assert request.status == 200  # for the log and the metrics
    assert api.engine.aborted == []


async def test_without_the_header_a_disconnect_ends_the_request_and_it_cannot_be_read_again(api: Api) -> None:
    api.engine.released.clear()
    request = AsgiRequest(api.app, COMPLETIONS, FORMS[COMPLETIONS] | {"stream": True}, headers={"x-request-id": "mine"})
    await until(lambda: api.engine.submitted)
    request.leave()
    await request.end()
    assert len(api.engine.aborted) == 1
    assert (await api.http.get(stream_of("mine"))).status_code == 404


async def test_a_response_ends_some_time_after_its_last_reader_has_left(chat_ml: ChatTemplate) -> None:
    async with open_api(chat_template=chat_ml, resume_limits=ResumeLimits(idle_seconds=0.2)) as api:
        request = await left_before_its_first_event(api)
        await asyncio.sleep(0.1)
        again = AsgiRequest(api.app, stream_of("mine"), None)
        await asyncio.sleep(0.3)
        assert api.engine.aborted == []  # it has a reader
        again.leave()
        await again.end()
        await request.end()
        assert len(api.engine.aborted) == 1
        assert api.sample("resumable_responses") == 0
        assert (await api.http.get(stream_of("mine"))).status_code == 404


async def test_a_finished_response_is_kept_for_a_while(chat_ml: ChatTemplate) -> None:
    async with open_api(chat_template=chat_ml, resume_limits=ResumeLimits(idle_seconds=0.2)) as api:
        await api.http.post(COMPLETIONS, json=FORMS[COMPLETIONS] | {"stream": True}, headers=RESUME)
        assert api.sample("resumable_responses") == 1
        assert api.sample("resumable_bytes") > 100
        await until(lambda: api.sample("resumable_responses") == 0)
        assert api.sample("resumable_bytes") == 0


async def test_a_response_can_be_read_by_its_response_id_and_with_last_event_id(api: Api) -> None:
    api.engine.seconds_per_token = 0.002
    posted = await api.http.post(COMPLETIONS, json=FORMS[COMPLETIONS] | {"stream": True}, headers=RESUME)
    events = whole_events(posted.text)
    assert len(events) > 4
    response_id = payloads(events)[0]["id"]
    assert response_id.startswith("cmpl-")
    for name in (response_id, posted.headers["x-request-id"]):
        again = await api.http.get(stream_of(name), headers={"last-event-id": "3"})
        assert whole_events(again.text) == events[3:]
        assert (await api.http.get(stream_of(name), headers={"last-event-id": str(len(events))})).status_code == 204
        assert whole_events((await api.http.get(stream_of(name), headers={"last-event-id": ""})).text) == events
    assert api.sample("resumable_reads_total") == 4


async def test_several_readers_get_the_same_events_and_there_is_a_limit_of_them(api: Api) -> None:
    api.engine.released.clear()
    first = started(api)
    others = [AsgiRequest(api.app, stream_of("mine"), None) for _ in range(7)]
    await until(lambda: api.engine.submitted)
    await asyncio.sleep(0.01)
    refused = await api.http.get(stream_of("mine"))
    assert refused.status_code == 429
    assert "8 readers" in refused.json()["error"]["message"]
    assert int(refused.headers["retry-after"]) > 0
    api.engine.released.set()
    for one in (first, *others):
        await one.end()
    assert {one.body for one in (first, *others)} == {first.body}
    assert text_of(whole_events(first.body)) == "Hello!"


async def test_a_client_that_does_not_read_stops_neither_the_engine_nor_other_readers(api: Api) -> None:
    first = started(api)
    first.reads.clear()
    again = AsgiRequest(api.app, stream_of("mine"), None)
    await again.end()
    assert text_of(whole_events(again.body)) == "Hello!"
    assert api.engine.num_running == 0
    assert first.sent == []
    first.reads.set()
    await first.end()
    assert first.body == again.body


@pytest.mark.parametrize("value", ["2", "", "yes", "01"])
async def test_another_value_of_the_header_is_400(api: Api, value: str) -> None:
    response = await api.http.post(COMPLETIONS, json=FORMS[COMPLETIONS], headers={"x-caravan-resume": value})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "x-caravan-resume"


async def test_zero_is_as_no_header(api: Api) -> None:
    response = await api.http.post(
        COMPLETIONS, json=FORMS[COMPLETIONS] | {"stream": True}, headers={"x-caravan-resume": "0"}
    )
    assert text_of_chunks(events_in(response.text)) == "Hello!"
    assert "x-caravan-resume" not in response.headers


@pytest.mark.parametrize("query", ["after=-1", "after=x", "after=1&after=2", "after=9999999999", "after=1000"])
async def test_an_offset_that_is_none_is_400(api: Api, query: str) -> None:
    await started(api).end()
    response = await api.http.get(f"{stream_of('mine')}?{query}")
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "after"
    both = await api.http.get(f"{stream_of('mine')}?after=1", headers={"last-event-id": "2"})
    assert both.status_code == 400


async def test_a_whole_response_can_be_read_again(api: Api) -> None:
    body = FORMS[COMPLETIONS]
    posted = await api.http.post(COMPLETIONS, json=body, headers=RESUME | {"x-request-id": "mine"})
    again = await api.http.get(stream_of("mine"))
    assert posted.status_code == again.status_code == 200
    assert again.json() == posted.json()
    assert again.headers["content-type"] == "application/json"


async def test_an_error_that_its_client_got_is_not_kept(api: Api) -> None:
    headers = RESUME | {"x-request-id": "mine"}
    refused = await api.http.post(COMPLETIONS, json={"model": "fake"}, headers=headers)
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "prompt"
    assert (await api.http.get(stream_of("mine"))).status_code == 404
    unread = await api.http.post(COMPLETIONS, content=b"x", headers=headers | {"content-type": "text/plain"})
    assert unread.status_code == 415
    assert api.sample("resumable_responses") == 0


async def test_an_error_that_its_client_missed_can_be_read(api: Api) -> None:
    api.engine.released.clear()
    api.engine.dies_after = 0
    request = started(api)
    await until(lambda: api.engine.submitted)
    request.leave()
    await asyncio.sleep(0.01)
    api.engine.released.set()
    await request.end()
    assert request.status == 503
    again = await api.http.get(stream_of("mine"))
    assert again.status_code == 503
    assert again.json()["error"]["code"] == "unavailable"


@pytest.mark.parametrize("path", FORMS)
async def test_the_error_that_ends_a_stream_is_one_of_its_events(api: Api, path: str) -> None:
    api.engine.dies_after = 2
    request = started(api, path)
    await request.end()
    events = whole_events(request.body)
    assert "before the response was complete" in request.body
    assert await resumed(api, "mine", 0) == events
    assert payloads(events)


async def test_the_explanation_has_the_cuts(api: Api) -> None:
    api.engine.seconds_per_token = 0.01
    request = started(api)
    await until(lambda: whole_events(request.body))
    request.leave()
    await asyncio.sleep(0.01)
    assert await resumed(api, "mine", 1)
    await request.end()
    timeline = (await api.http.get("/v1/requests/mine/explain")).json()["timeline"]
    (left,) = (event for event in timeline if event["event"] == "client disconnected")
    (back,) = (event for event in timeline if event["event"] == "stream resumed")
    assert left["sent_events"] >= 1
    assert back["after_event"] == 1


async def test_a_request_counts_as_running_until_its_generation_has_ended(api: Api) -> None:
    records: list[HttpRecord] = []
    async with open_api(on_response=records.append) as counted:
        counted.engine.released.clear()
        request = started(counted)
        await until(lambda: counted.engine.submitted)
        request.leave()
        await asyncio.sleep(0.02)
        assert records == []
        counted.engine.released.set()
        await request.end()
        (record,) = records
        assert (record.status, record.request_id, record.route) == (200, "mine", COMPLETIONS)
        assert record.generation is not None


async def test_the_method_of_another_kind_is_405_with_allow(api: Api) -> None:
    for path, allowed in ((stream_of("x"), "GET"), ("/v1/requests/x", "DELETE")):
        for method in ("PUT", "HEAD"):
            response = await api.http.request(method, path)
            assert (response.status_code, response.headers["allow"]) == (405, allowed)


async def test_threat_37_another_key_neither_reads_nor_ends_a_response(chat_ml: ChatTemplate) -> None:
    keys = {"alice": "secret-of-alice", "bob": "secret-of-bob"}
    alice, bob = ({"authorization": f"Bearer {key}"} for key in keys.values())
    async with open_api(chat_template=chat_ml, keys=ApiKeys(keys)) as api:
        body, headers = FORMS[COMPLETIONS] | {"stream": True}, RESUME | {"x-request-id": "same"}
        hers = await api.http.post(COMPLETIONS, json=body, headers=alice | headers)
        response_id = payloads(whole_events(hers.text))[0]["id"]
        unknown = await api.http.get(stream_of("nothing"), headers=bob)
        for name in ("same", response_id):
            assert await resumed(api, name, 0, **alice)
            stolen = await api.http.get(stream_of(name), headers=bob)
            assert (stolen.status_code, stolen.json()) == (404, unknown.json())
            assert (await api.http.delete(f"/v1/requests/{name}", headers=bob)).json() == unknown.json()
        his = await api.http.post(COMPLETIONS, json=body, headers=bob | headers)  # the same id is no conflict
        assert await resumed(api, "same", 0, **bob) == whole_events(his.text)
        assert await resumed(api, "same", 0, **alice) == whole_events(hers.text)
        assert (await api.http.get(stream_of("same"))).status_code == 401
