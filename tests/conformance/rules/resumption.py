"""Streams that survive the network."""

import json
import re
import uuid

import httpx

from tests.conformance.target import Body, Target, text_of

RESUME = {"x-caravan-resume": "1"}


def cut_streams_go_on(target: Target) -> None:
    """`x-caravan-resume` keeps a stream going without its client, and it can be read to its end."""
    name, body = uuid.uuid4().hex, _body(target, max_tokens=60)
    with target.http.stream("POST", "/v1/completions", json=body, headers=_headers(name)) as response:
        assert response.headers["x-caravan-resume"] == "1"
        got = next(chunk for chunk in response.iter_text() if "\n\n" in chunk)
    events = _events(got)
    events += _events(_read(target, name, after=events[-1][0]).text)
    whole = target.complete(max_tokens=60, ignore_eos=True)["choices"][0]["text"]
    assert _text(events) == whole, "the text of the parts is not that of an undisturbed request"


def events_are_numbered(target: Target) -> None:
    """Events of a resumable stream have ids from 1; those of other streams have none."""
    kept = target.http.post("/v1/completions", json=_body(target), headers=RESUME)
    events = _events(kept.text)
    assert events
    assert [number for number, _ in events] == [*range(1, len(events) + 1)]
    plain = target.http.post("/v1/completions", json=_body(target))
    assert not re.search("^id:", plain.text, re.MULTILINE)


def offsets_are_kept(target: Target) -> None:
    """`Last-Event-ID` and `after` send what follows an event, however often."""
    name = uuid.uuid4().hex
    events = _events(target.http.post("/v1/completions", json=_body(target), headers=_headers(name)).text)
    for after in (0, 1, len(events) - 1):
        assert _events(_read(target, name, after=after).text) == events[after:]
        by_header = target.http.get(f"/v1/requests/{name}/stream", headers={"last-event-id": str(after)})
        assert _events(by_header.text) == events[after:]
    assert _read(target, name, after=len(events)).status_code == 204
    assert _read(target, name, after=len(events) + 1).status_code == 400


def resumed_chats_are_whole(target: Target) -> None:
    """A chat is resumed by the id of its answer, too."""
    body = {"model": target.model, "stream": True} | target.a_chat()
    events = _events(target.http.post("/v1/chat/completions", json=body, headers=RESUME).text)
    found = re.search(r'"id":"(chatcmpl-[^"]+)"', events[0][1])
    assert found
    assert _events(_read(target, found[1], after=2).text) == events[2:]


def responses_can_be_ended(target: Target) -> None:
    """DELETE ends a resumable response; then it is 404."""
    name = uuid.uuid4().hex
    target.http.post("/v1/completions", json=_body(target), headers=_headers(name))
    assert target.http.delete(f"/v1/requests/{name}").status_code == 204
    assert _read(target, name, after=0).status_code == 404
    assert target.http.delete(f"/v1/requests/{name}").status_code == 404


def other_streams_are_not_kept(target: Target) -> None:
    """A stream without the header, or of an unknown id, cannot be read again."""
    name = uuid.uuid4().hex
    target.http.post("/v1/completions", json=_body(target), headers={"x-request-id": name})
    for one in (name, "no-such-request"):
        error = _read(target, one, after=0)
        assert error.status_code == 404
        assert isinstance(error.json()["error"]["message"], str)


def only_its_key_resumes(target: Target) -> None:
    """A resumable stream needs the key that made it."""
    if not target.has_key:
        return
    name = uuid.uuid4().hex
    target.http.post("/v1/completions", json=_body(target), headers=_headers(name))
    for method, path in (("GET", f"/v1/requests/{name}/stream"), ("DELETE", f"/v1/requests/{name}")):
        assert httpx.request(method, f"{target.url}{path}", trust_env=False).status_code == 401


def background_responses_are_kept(target: Target) -> None:
    """`background` of a response returns at once; the response is retrieved when it is complete."""
    fields: Body = {"max_output_tokens": 20, "extra_body": {"ignore_eos": True}}
    begun = target.client.responses.create(model=target.model, input="Say hello.", background=True, **fields)
    response = begun
    while response.status in ("queued", "in_progress"):
        response = target.client.responses.retrieve(begun.id)
    assert (response.id, response.status) == (begun.id, "incomplete")
    assert response.output_text


def background_streams_go_on(target: Target) -> None:
    """The events of a response in the background can be read from `starting_after` on."""
    stream = target.client.responses.create(model=target.model, input="Say hello.", background=True, stream=True)
    events = [*stream]
    response_id = events[0].response.id
    rest = [*target.client.responses.retrieve(response_id, stream=True, starting_after=1)]
    numbers, all_numbers = ([one.sequence_number for one in some] for some in (rest, events))
    assert numbers == all_numbers[2:], (len(numbers), len(all_numbers), numbers[:3], all_numbers[:3], events[-1].type)
    assert rest[-1].type in ("response.completed", "response.incomplete")


def background_responses_are_cancelled(target: Target) -> None:
    """A response in the background can be cancelled and deleted."""
    begun = target.client.responses.create(model=target.model, input="Count.", background=True, max_output_tokens=400)
    assert target.client.responses.cancel(begun.id).status in ("cancelled", "completed", "incomplete")
    target.client.responses.delete(begun.id)
    assert target.http.get(f"/v1/responses/{begun.id}").status_code == 404


def _body(target: Target, max_tokens: int = 6) -> Body:
    fields = {"prompt": "The sea is", "temperature": 0, "stream": True, "ignore_eos": True}
    return {"model": target.model, "max_tokens": max_tokens} | fields


def _headers(name: str) -> dict[str, str]:
    return RESUME | {"x-request-id": name}


def _read(target: Target, name: str, *, after: int) -> httpx.Response:
    return target.http.get(f"/v1/requests/{name}/stream", params={"after": after})


def _events(text: str) -> list[tuple[int, str]]:
    """Return the whole events in a text, as (id, data)."""
    return [(int(number), data) for number, data in re.findall(r"id: (\d+)\ndata: (.*)\n\n", text)]


def _text(events: list[tuple[int, str]]) -> str:
    return text_of([json.loads(data) for _, data in events if data != "[DONE]"])
