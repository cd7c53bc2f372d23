"""GET /, /api/version, /api/tags, /api/ps and POST /api/show; embeddings."""

import math
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from caravan.server.http.api_keys import ApiKeys
from caravan.server.ollama.models import API_VERSION
from caravan.server.sandbox.chat_template import ChatTemplate
from tests.server.openai.api import Api, Body, answered, open_api
from tests.support.engine_reports import READY
from tests.support.thinking import QWEN_3

REPORT = msgspec.structs.replace(READY, num_parameters=134_515_008, weight_bytes=269_030_016, file_type="Q4_K_M")


@pytest.fixture(scope="module")
def qwen() -> Iterator[ChatTemplate]:
    template = ChatTemplate(QWEN_3, "<s>", "</s>")
    yield template
    template.close()


@pytest.mark.parametrize("accept", [None, "*/*", "application/json"])
async def test_clients_that_are_no_browsers_learn_that_the_server_is_running(api: Api, accept: str | None) -> None:
    headers = {} if accept is None else {"accept": accept}
    response = await api.http.get("/", headers=headers)
    assert (response.status_code, response.text) == (200, "Ollama is running")
    assert response.headers["vary"] == "accept"
    headed = await api.http.head("/", headers=headers)
    assert headed.headers["content-length"] == str(len(response.text))
    page = await api.http.get("/", headers={"accept": "text/html,application/xhtml+xml,*/*;q=0.8"})
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.headers["vary"] == "accept, accept-encoding"


async def test_the_version_is_that_of_the_api_beside_that_of_the_server(api: Api) -> None:
    assert answered(await api.http.get("/api/version")) == {"version": API_VERSION, "server": "caravan 1.2.3"}
    assert (await api.http.head("/api/version")).status_code == 200


async def test_models_are_listed_with_a_tag_and_their_facts(api: Api) -> None:
    entries = answered(await api.http.get("/api/tags"))["models"]
    assert [entry["name"] for entry in entries] == ["fake:latest", "org/fake-7b:latest"]
    assert (entries[0]["size"], entries[0]["details"]["parameter_size"]) == (0, "")  # not loaded yet
    api.engine.report = REPORT
    entry, other = answered(await api.http.get("/api/tags"))["models"]
    assert entry["model"] == entry["name"]
    assert entry["size"] == REPORT.weight_bytes
    assert entry["capabilities"] == ["completion", "tools"]
    assert entry["digest"] == other["digest"]
    assert len(entry["digest"]) == 64
    assert entry["details"] == {
        **{"parent_model": "", "format": "", "family": "llama", "families": ["llama"]},
        **{"parameter_size": "135M", "quantization_level": "Q4_K_M"},
    }
    api.engine.fingerprint = "fp_other"
    assert answered(await api.http.get("/api/tags"))["models"][0]["digest"] != entry["digest"]


async def test_only_loaded_models_are_running(api: Api) -> None:
    (entry,) = answered(await api.http.get("/api/ps"))["models"]
    assert (entry["name"], entry["context_length"]) == ("fake:latest", 512)
    assert entry["expires_at"] == "9999-12-31T00:00:00Z"
    for state in ("asleep", "loading"):
        api.engine.state = state
        assert answered(await api.http.get("/api/ps")) == {"models": []}


@pytest.mark.parametrize(
    "body", [{"model": "fake"}, {"name": "fake:latest"}, {"model": "org/fake-7b", "name": "org/fake-7b"}]
)
async def test_a_model_is_described(api: Api, body: Body) -> None:
    api.engine.report = REPORT
    shown = answered(await api.http.post("/api/show", json=body))
    assert shown["model_info"] == {
        "general.architecture": "llama",
        "general.basename": "fake",
        "general.parameter_count": 134_515_008,
        "llama.context_length": 512,
        "llama.vocab_size": 260,
    }
    assert "<|im_start|>" in shown["template"]
    assert shown["parameters"].splitlines()[0] == "temperature 1"
    assert shown["capabilities"] == ["completion", "tools"]
    assert "warnings" not in shown


async def test_capabilities_are_those_of_the_template(qwen: ChatTemplate) -> None:
    async with open_api(chat_template=qwen) as api:
        assert answered(await api.http.post("/api/show", json={"model": "fake", "verbose": True})) | {
            "capabilities": ["completion", "tools", "thinking"],
            "warnings": ["`verbose` has no effect on this server."],
        } == answered(await api.http.post("/api/show", json={"model": "fake", "verbose": True}))
    async with open_api() as api:
        shown = answered(await api.http.post("/api/show", json={"model": "fake"}))
        assert (shown["capabilities"], shown["template"]) == (["completion"], "")
        assert "general.parameter_count" not in shown["model_info"]


async def test_large_models_are_counted_in_billions(api: Api) -> None:
    api.engine.report = msgspec.structs.replace(REPORT, num_parameters=8_030_261_248)
    shown = answered(await api.http.post("/api/show", json={"model": "fake"}))
    assert shown["details"]["parameter_size"] == "8.0B"


@pytest.mark.parametrize(("body", "status"), [({}, 400), ({"model": "none"}, 404), ({"name": ""}, 400)])
async def test_a_model_that_is_not_named_or_not_served_is_an_error(api: Api, body: Body, status: int) -> None:
    response = await api.http.post("/api/show", json=body)
    assert response.status_code == status
    assert isinstance(response.json()["error"], str)


async def test_texts_have_vectors_of_length_1(api: Api) -> None:
    answer = answered(await api.http.post("/api/embed", json={"model": "fake:latest", "input": ["a", "bc"]}))
    assert [len(vector) for vector in answer["embeddings"]] == [3, 3]
    assert all(math.isclose(math.fsum(x * x for x in vector), 1, rel_tol=1e-5) for vector in answer["embeddings"])
    assert answer["prompt_eval_count"] == 3
    assert answer["total_duration"] > 0
    of_ours = answered(await api.http.post("/v1/embeddings", json={"model": "fake", "input": "a"}))
    one = answered(await api.http.post("/api/embed", json={"model": "fake", "input": "a", "dimensions": 3}))
    assert one["embeddings"] == [of_ours["data"][0]["embedding"]]
    older = answered(await api.http.post("/api/embeddings", json={"model": "fake", "prompt": "a", "explain": True}))
    assert older["embedding"] == of_ours["data"][0]["embedding"]
    assert older["explanation"]["id"].startswith("ollama-")


@pytest.mark.parametrize(
    ("path", "fields", "says"),
    [
        ("/api/embed", {"input": []}, "empty"),
        ("/api/embed", {"input": 7}, "`input`"),
        ("/api/embed", {"input": [[1, 2]]}, "`input[0]`"),
        ("/api/embed", {"input": "x" * 600}, "maximum context length"),
        ("/api/embed", {"input": "x", "dimensions": 4}, "`dimensions` is 4"),
        ("/api/embeddings", {"prompt": ["x"]}, "`prompt`"),
        ("/api/embeddings", {"prompt": ""}, "`prompt` is empty"),
    ],
)
async def test_bad_texts_are_refused(api: Api, path: str, fields: dict[str, Any], says: str) -> None:
    response = await api.http.post(path, json={"model": "fake"} | fields)
    assert response.status_code == 400, response.text
    assert says in response.json()["error"]


async def test_fields_without_effect_on_embeddings_get_a_warning(api: Api) -> None:
    body = {"model": "fake", "keep_alive": 5, "truncate": True, "options": {"num_ctx": 8}}
    for path, text in (("/api/embed", {"input": "a"}), ("/api/embeddings", {"prompt": "a"})):
        answer = answered(await api.http.post(path, json=body | text))
        assert {warning.split("`")[1] for warning in answer["warnings"]} == {"keep_alive", "truncate", "options"}


async def test_keys_are_needed_but_for_the_probe(chat_ml: ChatTemplate) -> None:
    async with open_api(chat_template=chat_ml, keys=ApiKeys({"alice": "secret-of-alice"})) as api:
        assert (await api.http.get("/")).status_code == 200
        for path in ("/api/version", "/api/tags", "/api/ps"):
            response = await api.http.get(path)
            assert response.status_code == 401
            assert isinstance(response.json()["error"], str)
            assert (await api.http.get(path, headers={"authorization": "Bearer secret-of-alice"})).status_code == 200


async def test_two_different_names_of_a_model_are_refused(api: Api) -> None:
    refused = await api.http.post("/api/show", json={"model": "fake", "name": "other"})
    assert refused.status_code == 400
    assert "different values" in refused.json()["error"]
