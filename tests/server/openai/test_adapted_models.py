"""Adapters as models of the API: their names, salts and fingerprints. The engine is a script."""

from caravan.scheduler.messages import AdapterSource
from tests.server.openai.api import open_api
from tests.support.fakes import says

POEMS = AdapterSource(name="poems", path="/adapters/poems", digest="0" * 64)
CODE = AdapterSource(name="code", path="/adapters/code", digest="1" * 64)


async def test_adapters_are_listed_with_their_parent() -> None:
    async with open_api(adapters=[POEMS, CODE]) as api:
        data = (await api.http.get("/v1/models")).json()["data"]
        assert [(one["id"], one["root"], one.get("parent")) for one in data] == [
            ("fake", "fake", None),
            ("org/fake-7b", "fake", None),
            ("poems", "fake", "fake"),
            ("code", "fake", "fake"),
        ]
        assert (await api.http.get("/v1/models/poems")).json()["parent"] == "fake"
        anthropic = await api.http.get("/v1/models", headers={"anthropic-version": "2023-06-01"})
        assert [one["id"] for one in anthropic.json()["data"]][-2:] == ["poems", "code"]
        tags = (await api.http.get("/api/tags")).json()["models"]
        assert len({one["digest"] for one in tags}) == 3


async def test_a_request_has_the_adapter_that_it_names_and_a_salt_of_its_own() -> None:
    async with open_api(says("Hello!"), adapters=[POEMS, CODE]) as api:
        answers = {name: await api.complete(model=name, prompt="hi") for name in ("fake", "poems", "code")}
        mimic = f"adapter {POEMS.digest}\n\n"
        await api.complete(model="fake", prompt="hi", cache_salt=mimic)
        sent = api.engine.requests
        assert [request.adapter for request in sent] == ["", "poems", "code", ""]
        assert len({request.cache_salt for request in sent}) == 4
        assert {name: answer["model"] for name, answer in answers.items()} == {name: name for name in answers}
        assert len({answer.get("system_fingerprint") for answer in answers.values()}) == 3


async def test_an_unknown_name_is_not_found() -> None:
    async with open_api(adapters=[POEMS]) as api:
        answer = await api.http.post("/v1/completions", json={"model": "prose", "prompt": "hi"})
        assert answer.status_code == 404
        assert answer.json()["error"]["code"] == "model_not_found"
