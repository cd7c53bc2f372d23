"""Structured output under the names of OpenAI, vLLM, SGLang and llama.cpp: each of them is enforced."""

import json
from typing import Any

import pytest

from tests.server.openai.api import CHAT, COMPLETIONS, Api, a_chat

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
NAMED = {"type": "json_schema", "json_schema": {"name": "thing", "schema": SCHEMA}}
LARK = 'start: "a" | "b"'
GBNF = 'root ::= "a" | "b"'

SAME: list[tuple[dict[str, Any], list[dict[str, Any]]]] = [
    (
        {"response_format": NAMED},
        [
            {"structured_outputs": {"json": SCHEMA}},
            {"structured_outputs": {"json": json.dumps(SCHEMA)}},
            {"json_schema": SCHEMA},
            {"response_format": {"type": "json_object", "schema": SCHEMA}},
            {"guided_json": SCHEMA},
            {"guided_json": json.dumps(SCHEMA)},
        ],
    ),
    (
        {"response_format": {"type": "json_object"}},
        [{"structured_outputs": {"json_object": True}}, {"guided_json_object": True}],
    ),
    ({"regex": "[ab]"}, [{"structured_outputs": {"regex": "[ab]"}}, {"guided_regex": "[ab]"}]),
    (
        {"grammar": LARK},
        [
            {"structured_outputs": {"grammar": LARK}},
            {"structured_outputs": {"choice": ["a", "b"]}},
            {"ebnf": LARK},
            {"guided_grammar": LARK},
            {"guided_choice": ["a", "b"]},
        ],
    ),
]


@pytest.mark.parametrize(("ours", "other"), [(ours, one) for ours, others in SAME for one in others])
async def test_a_constraint_under_another_name_is_the_same(
    api: Api, ours: dict[str, Any], other: dict[str, Any]
) -> None:
    await api.chat(**ours)
    await api.chat(**other)
    await api.complete(**other)
    await api.stream(CHAT, **other)
    await api.stream(COMPLETIONS, **other)
    assert api.engine.grammars[0]
    assert set(api.engine.grammars) == {api.engine.grammars[0]}


async def test_a_choice_is_one_of_the_strings_with_any_characters(api: Api) -> None:
    await api.chat(structured_outputs={"choice": ['say "hi"', "a|b", "é\n"]})
    assert api.engine.grammars[0]


@pytest.mark.parametrize(
    ("fields", "warning"),
    [
        ({"guided_json": SCHEMA}, "`guided_json` is deprecated; use `structured_outputs.json`."),
        ({"guided_choice": ["a"]}, "`guided_choice` is deprecated"),
        ({"guided_decoding_backend": "outlines"}, "`guided_decoding_backend` has no effect"),
        ({"guided_whitespace_pattern": " "}, "`guided_whitespace_pattern` has no effect"),
        (
            {"structured_outputs": {"json": SCHEMA, "whitespace_pattern": " "}},
            "`structured_outputs.whitespace_pattern` has no effect",
        ),
        (
            {"structured_outputs": {"json": SCHEMA, "disable_any_whitespace": True}},
            "`structured_outputs.disable_any_whitespace` has no effect",
        ),
        (
            {"json_schema": {"type": "string", "nullable": True, "tone": "warm"}},
            '`json_schema`: these schema keywords have no effect: "nullable", "tone".',
        ),
    ],
)
async def test_no_effect_and_deprecated_names_are_warnings(api: Api, fields: dict[str, Any], warning: str) -> None:
    for answer in (await api.chat(**fields), await api.complete(**fields)):
        assert [text for text in answer["warnings"] if text.startswith(warning)], answer["warnings"]


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
@pytest.mark.parametrize(
    ("fields", "param", "reason"),
    [
        ({"grammar": GBNF}, "grammar", "this is GBNF; write Lark"),
        ({"ebnf": GBNF}, "ebnf", "this is GBNF; write Lark"),
        ({"guided_grammar": f"# a comment\n{GBNF}"}, "guided_grammar", "this is GBNF; write Lark"),
        ({"structured_outputs": {"grammar": GBNF}}, "structured_outputs.grammar", "this is GBNF; write Lark"),
        ({"structured_outputs": {}}, "structured_outputs", "has no constraint"),
        ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs", "`regex` and `choice`"),
        ({"structured_outputs": {"structural_tag": "{}"}}, "structured_outputs.structural_tag", "not supported"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs.choice", "a list of strings"),
        ({"structured_outputs": {"choice": ["a", ""]}}, "structured_outputs.choice", "not empty"),
        ({"structured_outputs": {"json": "{"}}, "structured_outputs.json", "must be a JSON schema"),
        ({"structured_outputs": {"json": {"not": SCHEMA}}}, "structured_outputs.json", "`not`"),
        ({"structured_outputs": {"regex": "((("}}, "structured_outputs.regex", "unclosed group"),
        ({"guided_json": {"type": "string", "format": "phone"}}, "guided_json", "its `format` is "),
        ({"response_format": {"type": "structural_tag"}}, "response_format", "must be of type"),
        ({"json_schema": SCHEMA, "regex": "a"}, "regex", "`regex` and `json_schema` cannot be combined"),
        (
            {"structured_outputs": {"regex": "a"}, "response_format": NAMED},
            "structured_outputs.regex",
            "cannot be combined",
        ),
        ({"guided_regex": "a", "structured_outputs": {"regex": "a"}}, "structured_outputs.regex", "`guided_regex`"),
        ({"structured_outputs": {"regex": "a"}, "min_tokens": 2}, "min_tokens", "grammar"),
    ],
)
async def test_an_invalid_or_second_constraint_is_400_and_nothing_runs(
    api: Api, path: str, fields: dict[str, Any], param: str, reason: str
) -> None:
    base = a_chat() if path == CHAT else {"model": "fake", "prompt": "hi"}
    response = await api.http.post(path, json=base | fields)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["param"] == param
    assert reason in error["message"]
    assert api.engine.submitted == []


@pytest.mark.parametrize("nothing", [None, {"regex": None, "json": None, "choice": ["a"]}])
async def test_null_means_no_constraint(api: Api, nothing: Any) -> None:
    await api.chat(structured_outputs=nothing, json_schema=None, guided_json=None, grammar=None)
    assert bool(api.engine.grammars[0]) == (nothing is not None)


async def test_functions_may_be_called_beside_a_schema_of_any_name(api: Api) -> None:
    tool = {"type": "function", "function": {"name": "find", "parameters": SCHEMA}}
    await api.chat(tools=[tool], structured_outputs={"json": SCHEMA})
    assert "find" in api.engine.grammars[0]
    refused = await api.http.post(CHAT, json=a_chat() | {"tools": [tool], "structured_outputs": {"choice": ["a"]}})
    assert refused.json()["error"]["param"] == "tools"


@pytest.mark.parametrize(
    "text",
    [
        '{"type": "integer", "minimum": NaN}',
        '{"type": "integer", "maximum": 1e999}',
        '{"const": -Infinity}',
        '{"type": "string", "const": "\\ud800"}',
        '{"type": "string", "type": "integer"}',
        "[" * 100_000,
    ],
)
async def test_a_schema_in_a_text_is_read_as_strictly_as_a_body(api: Api, text: str) -> None:
    response = await api.http.post(CHAT, json=a_chat() | {"structured_outputs": {"json": text}})
    assert response.status_code == 400, response.text
    assert "must be a JSON schema" in response.json()["error"]["message"]
    assert api.engine.submitted == []


@pytest.mark.parametrize(
    ("constraint", "words"),
    [
        ({"json": "[1]"}, "must be a JSON schema, as an object or as its text"),
        ({"json": "{"}, "must be a JSON schema, as an object or as its text"),
        ({"choice": []}, "must be a list of strings that are not empty"),
        ({"choice": [str(number) for number in range(100_000)]}, "must have at most"),
        ({"json": None}, "has no constraint"),
        ({"json": {}, "regex": "a"}, "has `json` and `regex`"),
    ],
)
async def test_a_wrong_object_of_structured_outputs_is_named(api: Api, constraint: dict[str, Any], words: str) -> None:
    response = await api.http.post(
        COMPLETIONS, json={"model": "fake", "prompt": "hi", "structured_outputs": constraint}
    )
    assert response.status_code == 400
    assert words in response.json()["error"]["message"]


async def test_a_null_schema_beside_another_constraint_is_left_out(api: Api) -> None:
    await api.complete(structured_outputs={"json": None, "choice": ["Hello!"]})
    assert len(api.engine.submitted) == 1
