"""Pages of other origins: none may use the API, unless it is allowed by name."""

from collections.abc import AsyncIterator

import pytest

from caravan.server.http.api_keys import ApiKeys
from caravan.server.http.host_names import allowed_origins
from caravan.server.settings import WrongSettings, load_settings
from tests.server.openai.api import CHAT, Api, open_api

ORIGIN = "https://app.example.org"
PREFLIGHT = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,content-type"}


@pytest.fixture
async def shared() -> AsyncIterator[Api]:
    async with open_api(keys=ApiKeys({"alice": "secret-of-alice"}), origins=(ORIGIN, "http://localhost:3000")) as api:
        yield api


async def test_threat_15_without_the_option_no_origin_is_allowed(api: Api) -> None:
    for response in (
        await api.http.options(CHAT, headers=PREFLIGHT | {"origin": ORIGIN}),
        await api.http.get("/v1/models", headers={"origin": ORIGIN}),
    ):
        assert not any(name.startswith("access-control-") for name in response.headers)


@pytest.mark.parametrize("origin", [ORIGIN, "http://localhost:3000"])
async def test_an_allowed_origin_preflights_without_a_key_and_calls_with_one(shared: Api, origin: str) -> None:
    asked = await shared.http.options(CHAT, headers=PREFLIGHT | {"origin": origin})
    assert asked.status_code == 200
    assert asked.headers["access-control-allow-origin"] == origin
    assert "POST" in asked.headers["access-control-allow-methods"]
    assert "authorization" in asked.headers["access-control-allow-headers"]
    assert "x-request-id" in asked.headers
    key = {"authorization": "Bearer secret-of-alice"}
    for headers, status in ((key, 200), ({}, 401)):
        response = await shared.http.get("/v1/models", headers=headers | {"origin": origin})
        assert response.status_code == status
        assert response.headers["access-control-allow-origin"] == origin
        assert "x-request-id" in response.headers["access-control-expose-headers"]
        assert "access-control-allow-credentials" not in response.headers
        assert "Origin" in response.headers["vary"]


@pytest.mark.parametrize("origin", ["https://evil.example", f"{ORIGIN}.evil.example", "http://app.example.org", "null"])
async def test_threat_15_another_origin_is_not_allowed(shared: Api, origin: str) -> None:
    asked = await shared.http.options(CHAT, headers=PREFLIGHT | {"origin": origin})
    assert asked.status_code == 400
    key = {"authorization": "Bearer secret-of-alice"}
    answered = await shared.http.get("/v1/models", headers=key | {"origin": origin})
    for response in (asked, answered):
        assert "access-control-allow-origin" not in response.headers


async def test_a_preflight_opens_nothing_but_itself(shared: Api) -> None:
    for headers in ({}, {"origin": ORIGIN}, {"access-control-request-method": "POST"}):
        assert (await shared.http.options(CHAT, headers=headers)).status_code == 401
    assert shared.engine.submitted == []


async def test_a_star_allows_any_origin_and_never_credentials() -> None:
    async with open_api(origins=("*",)) as api:
        for cookie in ({}, {"cookie": "a=b"}):
            response = await api.http.get("/v1/models", headers={"origin": "https://any.example"} | cookie)
            assert response.headers["access-control-allow-origin"] == "*"
            assert "access-control-allow-credentials" not in response.headers


def test_origins_are_listed_with_commas() -> None:
    listed = "https://App.example.org/, http://[::1]:3000,app://obsidian.md"
    assert allowed_origins(listed) == (ORIGIN, "http://[::1]:3000", "app://obsidian.md")
    assert allowed_origins(None) == ()
    assert load_settings({"allowed_origins": "*"}).allowed_origins == "*"


@pytest.mark.parametrize("wrong", ["app.example.org", "https://a/b", "https://*.example.org", "null", "https://"])
def test_an_invalid_origin_is_named(wrong: str) -> None:
    with pytest.raises(WrongSettings, match="--allowed-origins: it must be origins"):
        load_settings({"allowed_origins": wrong})
