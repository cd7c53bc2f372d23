"""response_format, regex and grammar: from the request's fields to the grammar the engine gets."""

from typing import Any

import pytest

from tests.server.openai.api import CHAT, COMPLETIONS, Api, a_chat

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}


def named(schema: Any, **more: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "thing", "schema": schema} | more}


@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": {"type": "json_object"}},
        {"response_format": named(SCHEMA, strict=True, description="A thing.")},
        {"regex": "[a-z]+"},
        {"grammar": 'start: "a" | "b"'},
    ],
)
async def test_completions_and_chats_send_a_grammar_to_the_engine(api: Api, fields: dict[str, Any]) -> None:
    await api.chat(**fields)
    await api.complete(**fields)
    assert all(api.engine.grammars)
    assert api.engine.grammars[0] == api.engine.grammars[1]


async def test_text_has_no_grammar(api: Api) -> None:
    await api.chat(response_format={"type": "text"})
    await api.complete()
    assert api.engine.grammars == ["", ""]


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
@pytest.mark.parametrize(
    ("fields", "param", "reason"),
    [
        ({"regex": "((("}, "regex", "unclosed group"),
        ({"regex": ""}, "regex", "at least 1"),
        ({"grammar": "start: foo"}, "grammar", "unknown name"),
        ({"response_format": named({"type": "frob"})}, "response_format", "Invalid type"),
        ({"response_format": named({"x-guidance": {"lenient": True}})}, "response_format", "x-guidance"),
        ({"response_format": named(SCHEMA, name="no spaces")}, "response_format.json_schema.name", ""),
        ({"response_format": named([1])}, "response_format.json_schema.schema", "must be an object"),
        ({"regex": "a", "grammar": 'start: "a"'}, "regex", "cannot be combined"),
    ],
)
async def test_a_constraint_that_cannot_be_enforced_is_400_and_nothing_runs(
    api: Api, path: str, fields: dict[str, Any], param: str, reason: str
) -> None:
    base = a_chat() if path == CHAT else {"model": "fake", "prompt": "hi"}
    response = await api.http.post(path, json=base | fields)
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == param
    assert reason in error["message"]
    assert api.engine.submitted == []
