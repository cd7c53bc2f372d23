"""Fields and options of Ollama that have no effect here: accepted with a warning, or refused by name."""

from typing import Any

import pytest

from caravan.server.ollama import messages, options, requests
from caravan.server.openai.protocol.known_field import KnownFields
from caravan.server.openai.protocol.strict_model import StrictModel
from tests.server.openai.api import Api, Body, answered

ENDPOINTS: dict[str, tuple[type[StrictModel], KnownFields, Body]] = {
    "/api/chat": (
        requests.OllamaChatRequest,
        requests.CHAT,
        {"model": "fake", "messages": [{"role": "user", "content": "hi"}], "stream": False},
    ),
    "/api/generate": (
        requests.OllamaGenerateRequest,
        requests.GENERATE,
        {"model": "fake", "prompt": "hi", "stream": False},
    ),
    "/api/embed": (requests.OllamaEmbedRequest, requests.EMBED, {"model": "fake", "input": "hi"}),
    "/api/embeddings": (requests.OllamaEmbeddingRequest, requests.EMBED, {"model": "fake", "prompt": "hi"}),
    "/api/show": (requests.OllamaShowRequest, requests.SHOW, {"model": "fake"}),
}
A_VALUE = {"some": ["thing", 7]}


@pytest.mark.parametrize("path", ENDPOINTS)
async def test_every_known_field_is_accepted_with_a_warning_or_refused_by_name(api: Api, path: str) -> None:
    schema, table, body = ENDPOINTS[path]
    assert not table.keys() & schema.model_fields.keys()
    taken = {name: A_VALUE for name, field in table.items() if not field.is_refused}
    answer = answered(await api.http.post(path, json=body | taken))
    assert [warning.split("`")[1] for warning in answer.get("warnings", [])] == [*taken]
    for name in (name for name, field in table.items() if field.is_refused):
        response = await api.http.post(path, json=body | {name: A_VALUE})
        assert response.status_code == 400
        assert response.json()["error"].startswith(f"`{name}` is")


@pytest.mark.parametrize("path", ENDPOINTS)
async def test_harmless_values_have_no_warning(api: Api, path: str) -> None:
    _, table, body = ENDPOINTS[path]
    for name, field in table.items():
        for value in (None, *field.harmless):
            assert "warnings" not in answered(await api.http.post(path, json=body | {name: value})), (name, value)


async def test_every_option_without_effect_gets_a_warning_unless_it_is_harmless(api: Api) -> None:
    _, _, body = ENDPOINTS["/api/chat"]
    assert not options.OPTIONS.keys() & options.ModelOptions.model_fields.keys()
    answer = answered(await api.http.post("/api/chat", json=body | {"options": dict.fromkeys(options.OPTIONS, 77)}))
    assert [warning.split("`")[1] for warning in answer["warnings"]] == [f"options.{name}" for name in options.OPTIONS]
    harmless: dict[str, Any] = {name: one.harmless[0] for name, one in options.OPTIONS.items() if one.harmless}
    assert len(harmless) == 4
    assert "warnings" not in answered(await api.http.post("/api/chat", json=body | {"options": harmless}))


async def test_fields_of_calls_without_effect_get_a_warning(api: Api) -> None:
    _, _, body = ENDPOINTS["/api/chat"]
    assert set(messages.CALLED) == {"index", "description"}
    call = {"function": {"name": "f", "arguments": {}, "index": 0}}
    history = [{"role": "user", "content": "a"}, {"role": "assistant", "tool_calls": [call]}]
    answer = answered(await api.http.post("/api/chat", json=body | {"messages": history}))
    assert "`messages[].tool_calls[].function.index` has no effect on this server." in answer["warnings"]
