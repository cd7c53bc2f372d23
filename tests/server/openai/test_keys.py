"""Requests with and without keys: every route is closed but those for health, and each key is known by its name."""

import ast
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast

import pytest

from caravan.server.http.api_keys import ApiKeys, KeyAttributes, load_keys
from caravan.server.sandbox.chat_template import ChatTemplate
from tests.server.openai.api import COMPLETIONS, Api, open_api

SERVER = Path(__file__).parents[3] / "server"
KEYS = {"alice": "secret-of-alice", "bob": "secret-of-bob"}
HELLO = {"model": "fake", "prompt": "hi"}
OPEN = ["/livez", "/readyz", "/health"]


def of(name: str) -> dict[str, str]:
    return {"authorization": f"Bearer {KEYS[name]}"}


@pytest.fixture
async def locked(chat_ml: ChatTemplate) -> AsyncIterator[Api]:
    async with open_api(chat_template=chat_ml, keys=ApiKeys(KEYS), num_cached_tokens=1) as api:
        yield api


def test_threat_1_no_decision_looks_at_the_url_that_a_client_wrote() -> None:
    for file in SERVER.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("request", "self.request", "connection"):
                assert node.attr not in ("url", "base_url", "url_for"), f"{file}:{node.lineno}"


@pytest.mark.parametrize("host", ["test", "other.example", "127.0.0.1:1", "livez"])
@pytest.mark.parametrize(
    "authorization", [None, "Bearer wrong-key", "Bearer", "Basic secret-of-alice", "secret-of-alice"]
)
async def test_threat_1_every_route_but_health_is_closed_whatever_the_host(
    locked: Api, host: str, authorization: str | None
) -> None:
    headers = {"host": host} | ({} if authorization is None else {"authorization": authorization})
    document = locked.app.openapi()
    routes = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    routes |= {
        ("GET", "/openapi.json"),
        ("GET", "/nowhere"),
        ("OPTIONS", COMPLETIONS),
        ("GET", "/livez/x"),
        ("GET", "/livez/../v1/models"),
        ("GET", "/v1/livez"),
        ("GET", "//v1/models"),
        ("GET", "/v1//models/"),
        ("GET", "/models"),
        ("POST", "/chat/completions/"),
        ("GET", "/v1/v1/models"),
        ("GET", "/web"),
        ("GET", "/web/"),
        ("GET", "/docs/x"),
        ("GET", "/webs/main.js"),
        ("POST", "/.web/main.js"),
    }
    assert ("GET", "/metrics") in routes
    for method, path in routes:
        response = await locked.http.request(method, f"http://test{path}", headers=headers)
        if path in OPEN:
            assert response.status_code != 401
            continue
        assert response.status_code == 401, path
        assert response.headers["www-authenticate"] == "Bearer"
        assert "x-request-id" in response.headers
        if method == "HEAD":
            continue
        error = response.json()["error"]
        if path.startswith("/v1/messages"):
            assert error["type"] == "authentication_error"
            continue
        if path.startswith("/api/"):
            assert isinstance(error, str)
            continue
        assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_api_key")
    assert locked.engine.submitted == []


async def test_a_key_opens_every_route(locked: Api) -> None:
    assert (await locked.http.post(COMPLETIONS, json=HELLO, headers=of("alice"))).status_code == 200
    assert (await locked.http.get("/metrics", headers={"authorization": "bearer secret-of-bob"})).status_code == 200


@pytest.mark.parametrize("path", ["/livez/", "//livez", "/readyz//", "//", "/docs/", "//web//style.css"])
async def test_threat_1_the_path_that_is_routed_decides_however_it_is_spelled(locked: Api, path: str) -> None:
    assert (await locked.http.get(f"http://test{path}")).status_code == 200


@pytest.mark.parametrize("header", ["x-api-key", "API-Key", "X-API-KEY", "api-key"])
async def test_keys_may_be_in_headers_of_other_apis(locked: Api, header: str) -> None:
    assert (await locked.http.post(COMPLETIONS, json=HELLO, headers={header: KEYS["alice"]})).status_code == 200
    assert locked.engine.requests[0].key == "alice"
    assert (await locked.http.get("/v1/models", headers={header: "wrong-key"})).status_code == 401
    assert (await locked.http.get("/v1/models", headers={header: f"Bearer {KEYS['alice']}"})).status_code == 401


async def test_one_key_may_be_in_several_headers_and_beside_a_proxys_password(locked: Api) -> None:
    for others in (of("alice"), {"authorization": "Basic dXNlcjpwYXNz"}, {"authorization": "Bearer "}, {"api-key": ""}):
        headers = others | {"x-api-key": KEYS["alice"]}
        assert (await locked.http.get("/v1/models", headers=headers)).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        [("authorization", "Bearer secret-of-alice"), ("x-api-key", "secret-of-bob")],
        [("authorization", "Bearer secret-of-alice"), ("api-key", "wrong-key")],
        [("x-api-key", "secret-of-alice"), ("api-key", "secret-of-bob")],
        [("x-api-key", "secret-of-alice"), ("x-api-key", "secret-of-bob")],
    ],
)
async def test_threat_1_several_different_keys_open_nothing(locked: Api, headers: list[tuple[str, str]]) -> None:
    refused = await locked.http.get("/v1/models", headers=headers)
    assert refused.status_code == 401
    assert refused.json()["error"]["message"] == "The request has several different API keys; send one."


async def test_once_a_key_is_marked_only_marked_keys_read_the_metrics() -> None:
    keys = ApiKeys(KEYS, {"bob": KeyAttributes(may_scrape=True)})
    async with open_api(keys=keys) as api:
        for path in ("/metrics", "/metrics/", "//metrics", "/metrics%0A", "/metrics%0A/", "/metrics/%0a"):
            refused = await api.http.get(f"http://test{path}", headers=of("alice"))
            assert refused.status_code == 403
            assert "`scrape`" in refused.json()["error"]["message"]
            assert (await api.http.get(f"http://test{path}", headers=of("bob"))).status_code == 200
        assert (await api.http.get("/v1/models", headers=of("alice"))).status_code == 200
        assert (await api.http.get("/v1/models", headers=of("bob"))).status_code == 200


async def test_two_authorization_headers_are_no_key(locked: Api) -> None:
    headers = [("authorization", "Bearer secret-of-alice"), ("authorization", "Bearer secret-of-bob")]
    assert (await locked.http.get("/v1/models", headers=headers)).status_code == 401


async def test_usage_is_counted_under_the_keys_name(locked: Api) -> None:
    for _ in range(2):
        await locked.http.post(COMPLETIONS, json=HELLO | {"n": 2}, headers=of("alice"))
    await locked.http.post(COMPLETIONS, json=HELLO | {"stream": True}, headers=of("bob"))
    assert locked.sample("key_requests_total", key="alice") == 2
    assert locked.sample("key_prompt_tokens_total", key="alice") == 4
    assert locked.sample("key_generation_tokens_total", key="alice") == 2 * 2 * len("Hello!\0")
    assert locked.sample("key_generation_tokens_total", key="bob") == len("Hello!\0")
    exposed = (await locked.http.get("/metrics", headers=of("bob"))).text
    assert "secret" not in exposed


async def test_the_engine_gets_the_key_name_and_keys_share_no_prefix(locked: Api) -> None:
    for name in ("alice", "bob"):
        await locked.http.post(COMPLETIONS, json=HELLO | {"priority": -3, "cache_salt": "s"}, headers=of(name))
    first, second = locked.engine.requests
    assert (first.key, first.priority) == ("alice", -3)
    assert first.cache_salt != second.cache_salt


async def salt_of(keys: ApiKeys | None, key: str, cache_salt: str, chat_ml: ChatTemplate) -> str:
    """Return the salt that the engine of a server gets."""
    async with open_api(chat_template=chat_ml, keys=keys) as api:
        headers = {"authorization": f"Bearer {key}"}
        await api.http.post(COMPLETIONS, json=HELLO | {"cache_salt": cache_salt}, headers=headers)
        return api.engine.requests[0].cache_salt


async def test_threat_34_servers_that_share_a_spill_file_share_prefixes_of_equal_keys_not_of_equal_names(
    chat_ml: ChatTemplate,
) -> None:
    one = await salt_of(load_keys(["secret-of-alice"], None), "secret-of-alice", "s", chat_ml)
    other = await salt_of(load_keys(["secret-of-bob"], None), "secret-of-bob", "s", chat_ml)
    renamed = await salt_of(ApiKeys(KEYS), "secret-of-alice", "s", chat_ml)
    assert one == renamed
    assert one != other
    without_keys = [await salt_of(None, "", salt, chat_ml) for salt in ("s", "key-1\ns", one)]
    assert not {one, other} & {*without_keys}
    assert "secret" not in one


async def test_threat_30_only_a_floor_in_the_key_file_lets_priority_count_beyond_the_key(chat_ml: ChatTemplate) -> None:
    keys = ApiKeys(KEYS, {"bob": KeyAttributes(min_priority=-5)})
    async with open_api(chat_template=chat_ml, keys=keys) as api:
        for name in ("alice", "bob"):
            for priority in (-1000, -3, 0, 1000):
                await api.http.post(COMPLETIONS, json=HELLO | {"priority": priority}, headers=of(name))
    assert [request.priority for request in api.engine.requests] == [-1000, -3, 0, 1000] * 2
    assert [request.urgency for request in api.engine.requests] == [0, 0, 0, 0, -5, -3, 0, 0]


async def test_without_keys_all_requests_have_one_key_name(api: Api) -> None:
    await api.complete(cache_salt="s")
    assert (api.engine.requests[0].key, api.engine.requests[0].cache_salt) == ("", "\ns")
    assert "key_requests" not in api.metrics.exposition().decode()


@pytest.mark.parametrize("priority", [-1001, 1001, 1.5, "high"])
async def test_a_wrong_priority_is_400(api: Api, priority: object) -> None:
    response = await api.http.post(COMPLETIONS, json=HELLO | {"priority": priority})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "priority"


async def test_threat_13_a_line_is_logged_of_each_request_and_nothing_in_it_is_of_the_clients_choosing() -> None:
    events: list[dict[str, object]] = []
    keys = ApiKeys({"alice": "secret-of-alice"})
    async with open_api(keys=keys, on_response=lambda record: events.append(record.log_fields())) as api:
        api.http.headers["authorization"] = "Bearer secret-of-alice"
        await api.complete(prompt="abc")
        await api.stream(COMPLETIONS, prompt="abc")
        await api.http.post("/v1/embeddings", json={"model": "fake", "input": ["a", "bc"]})
        await api.http.get("/nothing%0A/here?secret", headers={"x-request-id": "a b"})
        await api.http.get("/v1/models", headers={"authorization": "Bearer wrong-secret"})
        await api.http.request("BREW", "/v1/models")
    times = [float(str(event.pop(name, 0))) for event in events for name in ("seconds", "first_token_seconds")]
    assert all(0 <= seconds < 60 for seconds in times)
    assert {event.pop("client") for event in events} == {"127.0.0.1"}
    assert all(re.fullmatch(r"\w{32}", str(event.pop("request_id"))) for event in events)
    ids = [str(event.pop("id")) for event in events if "id" in event]
    assert [re.sub(r"\w{32}", "", name) for name in ids] == ["cmpl-", "cmpl-", "embd-"]
    names = ("method", "route", "status", "key")
    numbers = [number for event in events for number in cast("list[int]", event.pop("engine_requests", []))]
    assert len(numbers) == len(set(numbers)) == 4
    counts = ("prompt_tokens", "cached_tokens", "completion_tokens", "finish_reasons")
    assert [tuple(event[name] for name in names) for event in events] == [
        ("POST", "/v1/completions", 200, "alice"),
        ("POST", "/v1/completions", 200, "alice"),
        ("POST", "/v1/embeddings", 200, "alice"),
        ("GET", "unmatched", 404, "alice"),
        ("GET", "unmatched", 401, "-"),
        ("-", "/v1/models", 405, "alice"),
    ]
    assert [tuple(event[name] for name in counts) for event in events[:3]] == [
        (3, 0, 7, ["stop"]),
        (3, 0, 7, ["stop"]),
        (3, 0, 0, ["length", "length"]),
    ]
    assert all(set(event) == {*names, *counts} for event in events[:3])
    assert all(set(event) == {*names} for event in events[3:])


async def test_the_log_line_of_a_request_has_its_finish_reason() -> None:
    events: list[dict[str, object]] = []
    async with open_api(on_response=lambda record: events.append(record.log_fields())) as api:
        await api.complete(prompt="abc", stop=["l"])
        await api.complete(prompt="abc", n=2, max_tokens=2)
        async with api.http.stream("POST", COMPLETIONS, json=HELLO | {"max_tokens": 0, "echo": True}) as response:
            await response.aread()
    assert [event["finish_reasons"] for event in events] == [["stop"], ["length", "length"], ["length"]]
    assert "first_token_seconds" in events[0]
    assert "first_token_seconds" not in events[2]
