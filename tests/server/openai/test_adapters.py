"""POST /v1/load_lora_adapter and /v1/unload_lora_adapter: who may, from where, and what a name is then."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from caravan.model.checkpoint.adapter_digest import CONFIG_FILE, WEIGHTS_FILE
from caravan.scheduler.config import MAX_ADAPTERS
from caravan.scheduler.messages import AdapterChecked, AdapterSource, CheckAdapter, SetAdapters, ToEngine
from caravan.server.engine.adapter_list import AdapterList
from caravan.server.http.api_keys import ApiKeys, KeyAttributes
from caravan.server.openai.adapter_folder import AdapterFolder
from tests.server.openai.api import Api, open_api

LOAD, UNLOAD = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"


class Engine:
    """What takes the place of an engine: it finds no problem, unless a test says one."""

    def __init__(self, sources: list[AdapterSource]) -> None:
        self.list = AdapterList(sources, self._send, lambda: self.in_use)
        self.in_use: set[str] = set()
        self.problem = ""
        self.is_there = True
        self.checked: list[AdapterSource] = []
        self.sources = sources

    def _send(self, message: ToEngine) -> bool:
        match message:
            case CheckAdapter(source=source) if self.is_there:
                self.checked.append(source)
                self.list.on_checked(AdapterChecked(name=source.name, problem=self.problem))
            case SetAdapters(sources=sources):
                self.sources = sources
        return self.is_there


@asynccontextmanager
async def opened(folder: Path, *sources: AdapterSource, **options: Any) -> AsyncIterator[tuple[Api, Engine]]:
    """Return an application that loads adapters from a folder, and its engine."""
    engine = Engine([*sources])
    async with open_api(adapters=sources, adapter_folder=AdapterFolder(folder, engine.list), **options) as api:
        yield api, engine


def write(folder: Path, content: str = "") -> Path:
    """Write the files of an adapter; what is in them, the engine would say."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        (folder / name).write_text(content)
    return folder


def refused(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    error: dict[str, Any] = response.json()["error"]
    return error


async def names(api: Api) -> list[str]:
    return [one["id"] for one in (await api.http.get("/v1/models")).json()["data"]]


async def load(api: Api, name: str, path: Path | str) -> httpx.Response:
    return await api.http.post(LOAD, json={"lora_name": name, "lora_path": str(path)})


async def test_an_adapter_is_a_model_from_its_loading_to_its_unloading(tmp_path: Path) -> None:
    folder = write(tmp_path / "all" / "poems")
    async with opened(tmp_path / "all") as (api, engine):
        before = await names(api)
        answer = await load(api, "org/poems", "poems")
        assert answer.status_code == 200
        assert answer.text == "Success: LoRA adapter 'org/poems' added successfully."
        assert await names(api) == [*before, "org/poems"]
        assert (await api.http.get("/v1/models/org/poems")).json()["parent"] == "fake"
        assert engine.sources == engine.checked
        assert engine.sources[0].path == str(folder.resolve())
        await api.complete(model="org/poems")
        assert api.engine.requests[-1].adapter == "org/poems"
        removed = await api.http.post(UNLOAD, json={"lora_name": "org/poems"})
        assert removed.text == "Success: LoRA adapter 'org/poems' removed successfully."
        assert engine.sources == []
        assert await names(api) == before
        refused(await api.http.post("/v1/completions", json={"model": "org/poems", "prompt": "a"}), 404)


async def test_an_absolute_path_and_links_within_the_folder_are_taken(tmp_path: Path) -> None:
    folder = write(tmp_path / "poems")
    (tmp_path / "link").symlink_to(folder)
    async with opened(tmp_path) as (api, engine):
        assert (await load(api, "one", folder)).status_code == 200
        assert (await load(api, "two", "link")).status_code == 200
        assert [source.path for source in engine.sources] == [str(folder.resolve())] * 2


async def test_threat_42_nothing_outside_of_the_folder_is_read(tmp_path: Path) -> None:
    home, outside = tmp_path / "all", write(tmp_path / "secret")
    write(home / "linked")
    (home / "linked" / WEIGHTS_FILE).unlink()
    (home / "linked" / WEIGHTS_FILE).symlink_to(outside / WEIGHTS_FILE)
    (home / "away").symlink_to(outside)
    (home / "loop").symlink_to(home / "loop")
    (home / "file").write_text("")
    messages = set()
    paths = [*("../secret", str(outside), "/", "/etc", ".", "", "away", "linked", "loop", "file", "none", "a\0b")]
    async with opened(home) as (api, engine):
        for path in (*paths, "x" * 5000, "poems/../../secret", "~", "file:///etc", "https://example.org/poems"):
            error = refused(await load(api, "poems", path), 400)
            assert error["param"] == "lora_path"
            messages.add(error["message"])
        assert engine.checked == []
    assert len(messages) == 1, "an error tells what is there"
    assert str(tmp_path) not in messages.pop()


async def test_threat_42_a_file_that_never_ends_is_not_opened(tmp_path: Path) -> None:
    folder = write(tmp_path / "poems")
    (folder / CONFIG_FILE).unlink()
    os.mkfifo(folder / CONFIG_FILE)
    async with opened(tmp_path) as (api, engine):
        engine.problem = "poems has no adapter_config.json."
        assert engine.problem in refused(await load(api, "poems", "poems"), 400)["message"]
        assert [source.digest for source in engine.checked] == [""]


async def test_threat_42_only_a_key_with_the_attribute_changes_adapters(tmp_path: Path) -> None:
    write(tmp_path / "poems")
    keys = ApiKeys({"user": "secret-of-user", "owner": "secret-of-owner"}, {"owner": KeyAttributes(may_load=True)})
    async with opened(tmp_path, keys=keys) as (api, engine):
        bodies = ((LOAD, {"lora_name": "poems", "lora_path": "poems"}), (UNLOAD, {"lora_name": "poems"}))
        for path, body in bodies:
            for spelling in (path, path.replace("/v1/", "/v1//"), f"{path}/", path.removeprefix("/v1"), f"/v1{path}"):
                refused(await api.http.post(spelling, json=body), 401)
                user = await api.http.post(spelling, json=body, headers={"x-api-key": "secret-of-user"})
                assert "`adapters`" in refused(user, 403)["message"]
        assert engine.checked == []
        for path, body in bodies:
            answer = await api.http.post(path, json=body, headers={"x-api-key": "secret-of-owner"})
            assert answer.status_code == 200


async def test_threat_42_without_a_folder_adapters_stay_as_they_are(tmp_path: Path) -> None:
    poems = AdapterSource(name="poems", path=str(write(tmp_path / "poems")), digest="0")
    async with open_api(adapters=[poems]) as api:
        for path, body in ((LOAD, {"lora_name": "new", "lora_path": poems.path}), (UNLOAD, {"lora_name": "poems"})):
            assert refused(await api.http.post(path, json=body), 403)["code"] == "no_lora_folder"
        assert "poems" in await names(api)


async def test_what_the_engine_finds_is_the_error(tmp_path: Path) -> None:
    write(tmp_path / "poems")
    async with opened(tmp_path) as (api, engine):
        engine.problem = "poems uses DoRA, which is not supported yet."
        error = refused(await load(api, "poems", "poems"), 400)
        assert error["message"] == f"`lora_path` cannot be loaded: {engine.problem}"
        engine.is_there = False
        refused(await load(api, "poems", "poems"), 503)
        assert engine.sources == []
        assert "poems" not in await names(api)


async def test_names_are_new_and_plain(tmp_path: Path) -> None:
    write(tmp_path / "poems")
    source = AdapterSource(name="start", path=str(tmp_path / "poems"), digest="0")
    async with opened(tmp_path, source) as (api, _):
        for name in ("", "a b", "a\n", "-a", "x" * 129, "start", "fake", "org/fake-7b"):
            assert refused(await load(api, name, "poems"), 400)["param"] == "lora_name"
        for name in ("fake", "none", "", "\0"):
            error = refused(await api.http.post(UNLOAD, json={"lora_name": name}), 404)
            assert error["code"] == "model_not_found"
        assert (await api.http.post(UNLOAD, json={"lora_name": "start"})).status_code == 200
        assert (await load(api, "start", "poems")).status_code == 200


async def test_no_more_adapters_than_are_supported(tmp_path: Path) -> None:
    write(tmp_path / "poems")
    many = [AdapterSource(name=f"a{index}", path="/", digest="0") for index in range(MAX_ADAPTERS)]
    async with opened(tmp_path, *many) as (api, _):
        assert f"There are {MAX_ADAPTERS} adapters" in refused(await load(api, "poems", "poems"), 400)["message"]
        await api.http.post(UNLOAD, json={"lora_name": "a5"})
        assert (await load(api, "poems", "poems")).status_code == 200


async def test_unknown_fields_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "poems")
    body = {"lora_name": "poems", "lora_path": "poems"}
    async with opened(tmp_path) as (api, engine):
        for field, value in (("lora_nam", "a"), ("load_inplace", True), ("pinned", True), ("base_model_name", "a")):
            assert refused(await api.http.post(LOAD, json=body | {field: value}), 400)["param"] == field
        refused(await api.http.post(LOAD, json={"lora_name": "poems"}), 400)
        refused(await api.http.post(UNLOAD, json=body), 400)
        assert engine.checked == []
        assert (await api.http.post(LOAD, json=body | {"load_inplace": False})).status_code == 200


async def test_threat_42_a_new_adapter_of_an_old_name_shares_no_blocks_with_the_old_one(tmp_path: Path) -> None:
    write(tmp_path / "old", "old")
    write(tmp_path / "new", "new")
    async with opened(tmp_path) as (api, engine):
        for path in ("old", "new"):
            assert (await load(api, "poems", path)).status_code == 200
            await api.complete(model="poems", prompt="hi")
            engine.in_use = {"poems"}  # the answer goes on
            await api.http.post(UNLOAD, json={"lora_name": "poems"})
        old, new = api.engine.requests
        assert old.cache_salt != new.cache_salt
        assert (old.adapter, new.adapter) == ("poems", "poems (2)")
        assert [source.name for source in engine.sources] == ["poems"]
        engine.in_use = set()
        engine.list.let_go()
        assert engine.sources == []


@pytest.mark.parametrize("has_folder", [True, False])
async def test_the_document_lists_all_names_unless_others_can_follow(tmp_path: Path, has_folder: bool) -> None:
    folder = AdapterFolder(tmp_path, Engine([]).list) if has_folder else None
    async with open_api(adapter_folder=folder) as api:
        schemas = api.app.openapi()["components"]["schemas"]
        assert ("enum" in str(schemas["ChatRequest"]["properties"]["model"])) is not has_folder
