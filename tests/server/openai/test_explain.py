"""The explanation of a request: in its answer, by its route, in the terminal."""

import asyncio
import io
import re
from typing import Any

import httpx
import pytest
from rich.console import Console

from caravan.cli.explanation import ExplainFailed, fetch_explanation, print_explanation
from caravan.scheduler.messages import PrefixMiss, SequenceEvent, StepOutput, StepStats
from caravan.server.engine.output_queue import EngineUnavailable
from caravan.server.http.api_keys import ApiKeys, KeyAttributes
from caravan.server.sandbox.chat_template import ChatTemplate
from tests.server.openai.api import CHAT, COMPLETIONS, Api, answered, events_in, open_api
from tests.support.responses_events import events_of

EVENTS = ["arrived", "tokenized", "admitted", "queued", "first token", "finished"]


def explain(name: str) -> str:
    return f"/v1/requests/{name}/explain"


async def test_a_response_can_be_explained_by_its_id_and_by_its_request_id(api: Api) -> None:
    body = {"model": "fake", "prompt": "hi"}
    response = await api.http.post(COMPLETIONS, json=body, headers={"x-request-id": "mine"})
    by_id = answered(await api.http.get(explain(response.json()["id"])))
    assert by_id == answered(await api.http.get(explain("mine")))
    assert [event["event"] for event in by_id["timeline"]] == EVENTS
    assert by_id["timeline"][1]["prompt_tokens"] == [2]
    assert by_id["timeline"][2]["predicted_wait_ms"] == 0
    assert by_id["timeline"][3] | {"at_ms": 0} == {
        "at_ms": 0,
        "event": "queued",
        "choice": 0,
        "engine_request": by_id["choices"][0]["engine_request"],
        "behind": 0,
    }
    assert by_id["timeline"][-1]["reason"] == "stop"
    assert by_id["choices"][0]["tokens"] == by_id["choices"][0]["steps"] == len("Hello!") + 1
    assert by_id["is_finished"]


async def test_a_response_can_have_its_explanation(api: Api) -> None:
    for answer in (await api.complete(explain=True), await api.chat(explain=True, n=2)):
        assert answer["explanation"]["id"] == answer["id"]
        assert answer["explanation"]["timeline"][-1]["event"] == "finished"
    assert "explanation" not in await api.complete()
    for path in (COMPLETIONS, CHAT):
        *chunks, last = await api.stream(path, explain=True, stream_options={"include_usage": True})
        assert last["choices"] == []
        assert last["explanation"]["is_finished"]
        assert "usage" in chunks[-1]
        assert all("explanation" not in chunk for chunk in chunks)


async def test_responses_and_embeddings_can_have_their_explanation(api: Api) -> None:
    body = {"model": "fake", "input": "hi", "explain": True}
    for path in ("/v1/responses", "/v1/embeddings"):
        answer = answered(await api.http.post(path, json=body))
        assert answer["explanation"]["timeline"][-1]["event"] == "finished"
        assert "explanation" not in answered(await api.http.post(path, json=body | {"explain": False}))
    *events, last = await events_of(api, explain=True)
    assert last["response"]["explanation"]["is_finished"]
    assert not any("explanation" in event.get("response", {}) for event in events)


async def test_a_response_that_fails_is_explained_too(api: Api) -> None:
    api.engine.fails_after = 2
    for path in (COMPLETIONS, CHAT):
        *_, error, last = await api.stream(path, explain=True)
        assert "error" in error
        assert last["explanation"]["timeline"][-1]["reason"] == "error"
    failed = (await events_of(api, explain=True))[-1]
    assert failed["response"]["explanation"]["timeline"][-1]["reason"] == "error"


@pytest.mark.slow
async def test_a_failed_response_ends_all_its_choices(api: Api) -> None:
    api.engine.fails_after = 2
    explanation = (await api.stream(COMPLETIONS, explain=True, n=2))[-1]["explanation"]
    assert explanation["is_finished"]
    assert [choice["finish_reason"] for choice in explanation["choices"]] == ["error", "error"]
    api.engine.fails_after = None
    api.engine.seconds_per_token = 0.4
    late = {"x-request-timeout-ms": "1500"}
    body = {"model": "fake", "prompt": "hi", "stream": True, "explain": True}
    *_, error, last = events_in((await api.http.post(COMPLETIONS, json=body, headers=late)).text)
    assert error["error"]["code"] == "server_overloaded"
    assert last["explanation"]["choices"][0]["finish_reason"] == "timeout"


@pytest.mark.slow
async def test_a_response_that_times_out_has_the_reason_timeout(api: Api) -> None:
    api.engine.released.clear()
    for path, body in ((COMPLETIONS, {"prompt": "hi"}), ("/v1/embeddings", {"input": "hi"})):
        headers = {"x-request-id": "late", "x-request-timeout-ms": "300"}
        late = await api.http.post(path, json={"model": "fake"} | body, headers=headers)
        assert late.status_code == 429
        explanation = answered(await api.http.get(explain("late")))
        assert (explanation["timeline"][-1]["event"], explanation["timeline"][-1]["reason"]) == ("finished", "timeout")


async def test_requests_that_no_engine_accepts_leave_no_record(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise EngineUnavailable

    monkeypatch.setattr(api.engine, "submit", refuse)
    for path, body in ((COMPLETIONS, {"prompt": "hi"}), ("/v1/embeddings", {"input": "hi"})):
        refused = await api.http.post(path, json={"model": "fake"} | body, headers={"x-request-id": "refused"})
        assert refused.status_code == 503
        assert (await api.http.get(explain("refused"))).status_code == 404


async def test_a_response_that_a_stop_string_ends_has_the_reason_stop(api: Api) -> None:
    answer = await api.complete(explain=True, stop=["l"])
    assert answer["choices"][0]["text"] == "He"
    last = answer["explanation"]["timeline"][-1]
    assert (last["event"], last["reason"]) == ("finished", "stop")
    assert answer["explanation"]["is_finished"]


async def test_a_stop_string_in_the_last_token_ends_the_record_as_it_ends_the_response(api: Api) -> None:
    answer = await api.complete(explain=True, stop=["o"], max_tokens=5)
    assert answer["choices"][0]["finish_reason"] == "stop"
    (choice,) = answer["explanation"]["choices"]
    assert (choice["finish_reason"], choice["tokens"]) == ("stop", answer["usage"]["completion_tokens"])
    assert answer["explanation"]["timeline"][-1]["reason"] == "stop"


async def test_all_choices_end_with_the_engine(api: Api) -> None:
    api.engine.dies_after = 2
    explanation = (await api.stream(COMPLETIONS, explain=True, n=2))[-1]["explanation"]
    assert [choice["finish_reason"] for choice in explanation["choices"]] == ["error", "error"]


async def test_embeddings_and_responses_have_records_too(api: Api) -> None:
    headers = {"x-request-id": "vectors"}
    body = {"model": "fake", "input": ["a", "b"]}
    await api.http.post("/v1/embeddings", json=body, headers=headers)
    explanation = answered(await api.http.get(explain("vectors")))
    assert [event["event"] for event in explanation["timeline"]].count("finished") == 2
    response = answered(await api.http.post("/v1/responses", json={"model": "fake", "input": "hi"}))
    assert answered(await api.http.get(explain(response["id"])))["is_finished"]


async def test_a_key_sees_its_own_requests_only(chat_ml: ChatTemplate) -> None:
    keys = {"alice": "secret-of-alice", "bob": "secret-of-bob"}
    async with open_api(chat_template=chat_ml, keys=ApiKeys(keys)) as api:
        alice = {"authorization": f"Bearer {keys['alice']}"}
        bob = {"authorization": f"Bearer {keys['bob']}"}
        body = {"model": "fake", "prompt": "hi"}
        made = (await api.http.post(COMPLETIONS, json=body, headers=alice | {"x-request-id": "same"})).json()["id"]
        for name in (made, "same"):
            assert (await api.http.get(explain(name), headers=alice)).status_code == 200
            assert (await api.http.get(explain(name), headers=bob)).status_code == 404
        other = (await api.http.post(COMPLETIONS, json=body, headers=bob | {"x-request-id": "same"})).json()["id"]
        assert (await api.http.get(explain("same"), headers=alice)).json()["id"] == made
        assert (await api.http.get(explain("same"), headers=bob)).json()["id"] == other


async def test_a_request_that_is_not_known_is_404(api: Api) -> None:
    refused = await api.http.get(explain("cmpl-0"))
    assert refused.status_code == 404
    assert refused.json()["error"]["param"] == "name"


async def test_the_command_prints_a_line_for_each_event(api: Api) -> None:
    answer = await api.complete()
    explanation = answered(await api.http.get(explain(answer["id"])))
    seen: list[str] = []

    def serve(request: httpx.Request) -> httpx.Response:
        seen.append(request.url.path)
        return httpx.Response(200, json=explanation)

    fetched = fetch_explanation("http://test", answer["id"], httpx.MockTransport(serve))
    assert seen == [explain(answer["id"])]
    written = io.StringIO()
    print_explanation(fetched, Console(file=written, width=140))
    for text in (*EVENTS, "reason stop", "7 tokens in 7 steps", "Finished."):
        assert text in written.getvalue()


@pytest.mark.parametrize("status", [404, None])
def test_the_command_prints_an_error_in_one_line(status: int | None) -> None:
    def serve(request: httpx.Request) -> httpx.Response:
        if status is None:
            raise httpx.ConnectError("refused")
        return httpx.Response(status, json={"error": {"message": "There is no such request."}})

    with pytest.raises(ExplainFailed, match=r"no such request|does not respond"):
        fetch_explanation("http://test", "cmpl-1", httpx.MockTransport(serve))


async def explained_miss(api: Api, miss: PrefixMiss, **headers: str) -> dict[str, Any]:
    """Return the explanation of a request that joins the batch with this miss."""
    api.engine.released.clear()
    body = {"model": "fake", "prompt": "hi", "explain": True}
    posted = asyncio.create_task(api.http.post(COMPLETIONS, json=body, headers=headers))
    number = len(api.engine.requests) + 1
    while len(api.engine.requests) < number:
        await asyncio.sleep(0.001)
    join = SequenceEvent(number, "join", 64, miss=miss)
    api.engine.listener.on_step(StepOutput(outputs=[], stats=StepStats(), events=[join]))
    api.engine.released.set()
    explanation: dict[str, Any] = answered(await posted)["explanation"]
    return explanation


PRINTED = {
    PrefixMiss("evicted", 64, 12.0, 5): "prefix token 64 on was evicted 12 s ago",
    PrefixMiss("differs", 79, 3.04, 5): "prefix differs at token 79 from a block cached 3 s ago",
    PrefixMiss("not seen", 64, 300.0, 5): "prefix token 64 on was not in the cache in the last 300 s",
    PrefixMiss("other key", 0, 300.0, 5): "prefix token 0 on was not in the cache in the last 300 s",
    PrefixMiss("scored", 0, None, 5): "prefix token 0 on is scored",
    PrefixMiss("too short", 64, None, 5): "prefix token 64 on is too short for a block",
}


@pytest.mark.parametrize("miss", PRINTED, ids=lambda miss: miss.reason)
async def test_an_explanation_says_why_no_more_of_the_prefix_was_found(api: Api, miss: PrefixMiss) -> None:
    explanation = await explained_miss(api, miss)
    (joined,) = (event for event in explanation["timeline"] if event["event"] == "joined")
    assert joined["miss"] == ("not seen" if miss.reason == "other key" else miss.reason)
    assert (joined["cached_tokens"], joined["miss_token"]) == (64, miss.token)
    assert joined.get("miss_seconds") == (None if miss.seconds is None else round(miss.seconds, 1))
    written = io.StringIO()
    print_explanation(explanation, Console(file=written, width=140))
    assert PRINTED[miss] in written.getvalue()
    assert "miss " not in written.getvalue()
    assert "other" not in written.getvalue()


async def test_threat_16_only_a_key_that_may_scrape_learns_what_other_keys_have_cached(
    chat_ml: ChatTemplate,
) -> None:
    keys = {"user": "secret-of-user", "monitor": "secret-of-monitor"}
    user, monitor = ({"authorization": f"Bearer {keys[name]}"} for name in keys)
    miss = PrefixMiss("other key", 0, 300.0, 5)
    for attributes, reasons in (({"monitor": KeyAttributes(may_scrape=True)}, {"other_key"}), ({}, {"not_seen"})):
        async with open_api(chat_template=chat_ml, keys=ApiKeys(keys, attributes)) as api:
            explanation = await explained_miss(api, miss, **user)
            assert "other" not in str(explanation)
            text = (await api.http.get("/metrics", headers=monitor)).text
            counts = re.findall(r"^caravan_prefix_cache_misses_total{.*reason=\"(\w+)\"} (\S+)$", text, re.MULTILINE)
            assert {reason for reason, count in counts if float(count)} == reasons
            is_hidden = (await api.http.get("/metrics", headers=user)).status_code == 403
            assert is_hidden == bool(attributes)
