"""GET /v1/models in Anthropic's form, and the ids of requests as Anthropic's client reads them."""

from typing import Any

import anthropic
import pytest

from caravan.server.sandbox.chat_template import ChatTemplate
from tests.server.openai.api import Api, answered, open_api
from tests.support.anthropic_client import anthropic_client
from tests.support.message_events import HI, error_of
from tests.support.official_client import official

VERSION = {"anthropic-version": "2023-06-01"}
NAMES = ("a", "b", "org/c-7b")
ALL = ["fake", *NAMES]


async def page(api: Api, query: str = "") -> tuple[list[str], bool]:
    """Return the ids of a page, and whether there are more; its ends must be those of its data."""
    body = answered(await api.http.get(f"/v1/models{query}", headers=VERSION))
    assert set(body) == {"data", "has_more", "first_id", "last_id"}
    ids = [entry["id"] for entry in body["data"]]
    assert (body["first_id"], body["last_id"]) == ((ids[0], ids[-1]) if ids else (None, None))
    return ids, body["has_more"]


async def test_the_official_client_lists_and_retrieves_models_and_reads_the_ids_of_requests(
    chat_ml: ChatTemplate,
) -> None:
    async with open_api(chat_template=chat_ml, aliases=NAMES) as api, anthropic_client(api) as client:
        listed = [model async for model in client.models.list(limit=2)]  # several pages
        assert [model.id for model in listed] == ALL
        model = await client.models.retrieve("org/c-7b")
        assert (model.type, model.id, model.display_name, model.lifecycle) == ("model", *["org/c-7b"] * 2, "active")
        assert model.max_input_tokens == model.max_tokens == 512
        assert model.created_at.utcoffset() is not None
        assert model._request_id
        with pytest.raises(anthropic.NotFoundError) as missing:
            await client.models.retrieve("claude")
        body: Any = missing.value.body
        assert error_of(body)["type"] == "not_found_error"
        assert missing.value.request_id == body["request_id"]
        message = await client.messages.create(model="fake", max_tokens=9, messages=HI)  # type: ignore[arg-type]
        assert message._request_id
        with pytest.raises(anthropic.BadRequestError) as refused:
            await client.messages.create(model="fake", max_tokens=-1, messages=HI)  # type: ignore[arg-type]
        assert refused.value.request_id
        async with client.messages.stream(model="fake", max_tokens=9, messages=HI) as stream:  # type: ignore[arg-type]
            assert stream.response.headers["request-id"]
        assert [one.id for one in (await official(api).models.list()).data] == ALL  # without the header


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", (ALL, False)),
        ("?limit=3", (ALL[:3], True)),
        ("?limit=4", (ALL, False)),
        ("?limit=2&after_id=a", (ALL[2:], False)),
        ("?limit=1&after_id=a", (ALL[2:3], True)),
        ("?after_id=org/c-7b", ([], False)),
        ("?limit=1&before_id=b", (ALL[1:2], True)),
        ("?limit=2&before_id=b", (ALL[:2], False)),
        ("?before_id=fake", ([], False)),
        ("?lifecycle[]=active&lifecycle[]=retired", (ALL, False)),
        ("?lifecycle=deprecated", ([], False)),
    ],
)
async def test_pages_go_both_ways(query: str, expected: tuple[list[str], bool]) -> None:
    async with open_api(aliases=NAMES) as api:
        assert await page(api, query) == expected


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("?limit=0", '`limit` is "0"'),
        ("?limit=1001", "from 1 to 1000"),
        ("?limit=x", "`limit`"),
        ("?limit=99999", "`limit`"),
        ("?after_id=c", '`after_id` is "c"; there is no such model.'),
        ("?before_id=c", "`before_id`"),
        ("?after_id=a&before_id=b", "cannot be combined"),
        ("?lifecycle=old", "active, deprecated, retired"),
    ],
)
async def test_a_wrong_parameter_is_400_and_named(query: str, says: str) -> None:
    async with open_api(aliases=NAMES) as api:
        response = await api.http.get(f"/v1/models{query}", headers=VERSION)
        assert response.status_code == 400
        assert says in error_of(response.json())["message"]


async def test_the_header_decides_the_form_of_errors_too(api: Api) -> None:
    for headers, keys in ((VERSION, {"type", "error", "request_id"}), ({}, {"error"})):
        for method, path in (("GET", "/v1/models/x"), ("POST", "/v1/models")):
            response = await api.http.request(method, path, headers=headers)
            assert response.status_code == (404 if method == "GET" else 405)
            assert set(response.json()) == keys
            assert ("request-id" in response.headers) == bool(headers)
