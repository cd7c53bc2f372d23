"""Fields that other servers know: taken with a warning and counted, or refused by name; unknown ones get a hint."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from caravan.server.openai.protocol import known_fields
from caravan.server.openai.protocol.chat import ChatRequest
from caravan.server.openai.protocol.completions import CompletionRequest
from caravan.server.openai.protocol.decisions import DecisionRequest
from caravan.server.openai.protocol.embeddings import EmbeddingRequest
from caravan.server.openai.protocol.known_field import KnownFields
from caravan.server.openai.protocol.known_fields import CHAT as CHAT_FIELDS
from caravan.server.openai.protocol.known_fields import (
    COMPLETION,
    DECISION,
    EMBEDDING,
    RERANK,
    RESPONSES,
    SCORE,
    SYSTEM_ONE,
    TOKENIZE,
    TOKENS,
)
from caravan.server.openai.protocol.responses import ResponsesRequest
from caravan.server.openai.protocol.scores import RerankRequest, ScoreRequest
from caravan.server.openai.protocol.strict_model import StrictModel
from caravan.server.openai.protocol.system_one import SystemOneRequest
from caravan.server.openai.protocol.tokenize import ApplyTemplateRequest, DetokenizeRequest, TokenizeRequest
from tests.server.openai.api import CHAT, COMPLETIONS, Api, Body, a_chat, answered

ENDPOINTS: dict[str, tuple[type[StrictModel], KnownFields, Body]] = {
    COMPLETIONS: (CompletionRequest, COMPLETION, {"model": "fake", "prompt": "hi"}),
    CHAT: (ChatRequest, CHAT_FIELDS, a_chat()),
    "/v1/responses": (ResponsesRequest, RESPONSES, {"model": "fake", "input": "hi"}),
    "/v1/embeddings": (EmbeddingRequest, EMBEDDING, {"model": "fake", "input": "hi"}),
    "/v1/decisions": (
        DecisionRequest,
        DECISION,
        {"model": "fake", "input": "hi", "questions": [{"type": "predicate", "instructions": "It is."}]},
    ),
    "/v1/systemone": (
        SystemOneRequest,
        SYSTEM_ONE,
        {"model": "fake", "state": "hi", "questions": {"a": {"type": "noul", "instructions": "It is."}}},
    ),
    "/v1/score": (ScoreRequest, SCORE, {"model": "fake", "text_1": "a", "text_2": "b"}),
    "/v1/rerank": (RerankRequest, RERANK, {"model": "fake", "query": "a", "documents": ["b"]}),
    "/tokenize": (TokenizeRequest, TOKENIZE, {"prompt": "hi"}),
    "/detokenize": (DetokenizeRequest, TOKENS, {"tokens": [97]}),
    "/apply-template": (ApplyTemplateRequest, TOKENS, {"messages": a_chat()["messages"]}),
}
NESTED: dict[str, KnownFields] = {
    "stream_options.": known_fields.STREAM_OPTIONS,
    "text.": known_fields.TEXT_OPTIONS,
    "reasoning.": known_fields.REASONING,
    "thinking.": known_fields.THINKING_OPTIONS,
    "response_format.json_schema.": known_fields.SCHEMA,
    "tools[].function.": known_fields.TOOL,
    "messages[].": known_fields.MESSAGE,
    "messages[].tool_calls[].": known_fields.TOOL_CALL,
    "messages[].tool_calls[].function.": known_fields.CALLED_FUNCTION,
    "structured_outputs.": known_fields.STRUCTURED_OUTPUTS,
    "input[].": known_fields.RESPONSE_ITEM,
}
A_VALUE = {"some": ["thing", 7]}


async def refusal(api: Api, path: str, fields: Body) -> Body:
    response = await api.http.post(path, json=ENDPOINTS[path][2] | fields)
    assert response.status_code == 400, response.text
    error: Body = response.json()["error"]
    return error


@pytest.mark.parametrize("path", ENDPOINTS)
async def test_every_known_field_is_accepted_with_a_warning_or_refused_by_name(api: Api, path: str) -> None:
    schema, table, body = ENDPOINTS[path]
    own = {field.alias or name for name, field in schema.model_fields.items()}
    taken = {name: A_VALUE for name, field in table.items() if name not in own and not field.is_refused}
    answer = answered(await api.http.post(path, json=body | taken))
    for name in taken:
        assert any(warning.startswith(f"`{name}` has no effect on this server") for warning in answer["warnings"]), name
    assert len(answer["warnings"]) == len(taken)
    for name in (name for name, field in table.items() if name not in own and field.is_refused):
        error = await refusal(api, path, {name: A_VALUE})
        assert error["param"] == name
        assert "is not supported by this version" in error["message"]


@pytest.mark.slow
@pytest.mark.parametrize("path", ENDPOINTS)
async def test_harmless_values_of_known_fields_have_no_warning(api: Api, path: str) -> None:
    schema, table, body = ENDPOINTS[path]
    for name, field in table.items():
        if name not in schema.model_fields:
            for value in (None, *field.harmless):
                answer = answered(await api.http.post(path, json=body | {name: value}))
                assert "warnings" not in answer, (name, value)


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
async def test_a_stream_has_the_warnings_in_its_first_chunk(api: Api, path: str) -> None:
    chunks = await api.stream(path, mirostat=2, repeat_penalty=1.1)
    assert chunks[0]["warnings"] == [
        "`mirostat` has no effect on this server.",
        "`repeat_penalty` has no effect on this server; use `repetition_penalty`.",
    ]
    assert not any("warnings" in chunk for chunk in chunks[1:])


async def test_known_fields_are_counted_by_name_and_unknown_ones_never(api: Api) -> None:
    def count(name: str) -> float:
        return api.sample("ignored_fields_total", field=name)

    tool = {"type": "function", "function": {"name": "f", "cache_control": {"type": "ephemeral"}}}
    await api.chat(provider={"order": ["a"]}, tools=[tool, tool | {"function": {"name": "g", "cache_control": 1}}])
    await api.complete(provider="a")
    answered(await api.http.post("/v1/embeddings", json={"model": "fake", "input": "a", "input_type": "query"}))
    assert count("provider") == 2
    assert count("tools[].function.cache_control") == 1  # once for a request
    assert count("input_type") == 1
    for name in ("nonsense", "x" * 500):
        await refusal(api, COMPLETIONS, {name: 1})
    fields = re.findall(r'caravan_ignored_fields_total{field="([^"]*)"', api.metrics.exposition().decode())
    assert set(fields) == {"provider", "tools[].function.cache_control", "input_type"}


@pytest.mark.parametrize(
    ("path", "fields", "param", "hint"),
    [
        (COMPLETIONS, {"max_token": 5}, "max_token", "max_tokens"),
        (COMPLETIONS, {"maxTokens": 5}, "maxTokens", "max_tokens"),
        (COMPLETIONS, {"tempreature": 1}, "tempreature", "temperature"),
        (COMPLETIONS, {"top-k": 1}, "top-k", "top_k"),
        (CHAT, {"message": []}, "message", "messages"),
        (CHAT, {"max_completions_tokens": 5}, "max_completions_tokens", "max_completion_tokens"),
        (
            CHAT,
            {"stream": True, "stream_options": {"include_usages": True}},
            "stream_options.include_usages",
            "include_usage",
        ),
        (
            CHAT,
            {"tools": [{"type": "function", "function": {"name": "f", "parameter": {}}}]},
            "tools[0].function.parameter",
            "parameters",
        ),
        (
            CHAT,
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "shema": {}}}},
            "response_format.json_schema.shema",
            "schema",
        ),
        ("/v1/responses", {"instruction": "x"}, "instruction", "instructions"),
        ("/v1/responses", {"text": {"formats": {}}}, "text.formats", "format"),
        (
            "/v1/responses",
            {"input": [{"type": "function_call", "call_id": "a", "name": "f", "argument": "{}"}]},
            "input[0].argument",
            "arguments",
        ),
        ("/tokenize", {"return_piece": True}, "return_piece", "return_pieces"),
    ],
)
async def test_the_nearest_name_of_an_unknown_field_is_suggested(
    api: Api, path: str, fields: Body, param: str, hint: str
) -> None:
    error = await refusal(api, path, fields)
    assert error["param"] == param
    assert error["message"] == f"Unknown field `{param}`. Did you mean `{hint}`?"


@pytest.mark.parametrize("name", ["nonsense", "x" * 5000, "", "max_tokens" * 10])
async def test_a_name_that_is_like_no_other_gets_no_suggestion(api: Api, name: str) -> None:
    error = await refusal(api, COMPLETIONS, {name: 1})
    assert error["message"].startswith("Unknown field")
    assert "Did you mean" not in error["message"]


async def test_a_misspelt_field_is_named_rather_than_the_one_that_is_missing(api: Api) -> None:
    response = await api.http.post(COMPLETIONS, json={"modle": "fake", "prompt": "hi"})
    assert response.json()["error"]["message"] == "Unknown field `modle`. Did you mean `model`?"


@pytest.mark.parametrize(
    ("path", "fields", "says"),
    [
        (COMPLETIONS, {"n_predict": 5}, "use `max_tokens`"),
        (COMPLETIONS, {"use_beam_search": True}, "it can only be false"),
        (COMPLETIONS, {"suffix": "end"}, "leave it out"),
        (COMPLETIONS, {"lora_request": {"name": "a"}}, "leave it out"),
        (COMPLETIONS, {"logits_processors": ["a.b"]}, "leave it out"),
        (CHAT, {"chat_template": "{{ x }}"}, "leave it out"),
        (CHAT, {"functions": [{"name": "f"}]}, "use `tools`"),
        (CHAT, {"audio": {"voice": "a"}}, "leave it out"),
        ("/v1/responses", {"max_tokens": 5}, "use `max_output_tokens`"),
    ],
)
async def test_what_asks_for_another_kind_of_answer_is_refused_with_the_way_out(
    api: Api, path: str, fields: Body, says: str
) -> None:
    assert says in (await refusal(api, path, fields))["message"]
    assert api.engine.submitted == []


def test_values_of_ignored_fields_are_not_kept() -> None:
    request = CompletionRequest.model_validate({"model": "m", "prompt": "hi", "metadata": {"a": [1] * 1000}})
    assert request.ignored_names == ["metadata"]
    assert "metadata" not in json.dumps(request.model_dump())
    assert request.model_extra is None


@pytest.mark.parametrize("path", ENDPOINTS)
def test_values_that_decide_nothing_need_not_be_decoded(path: str) -> None:
    schema, table, body = ENDPOINTS[path]
    meaning = schema.fields_with_meaning()
    own = {field.alias or name for name, field in schema.model_fields.items()}
    assert own <= meaning
    assert "session_id" not in meaning
    values: list[Any] = [A_VALUE, "", [], {}, [[[]]]]
    for name in table.keys() - meaning:
        for value in values:
            assert schema.model_validate(body | {name: value}).ignored_names == [name]


async def test_threat_28_a_refused_field_of_a_long_body_is_still_refused(api: Api) -> None:
    for fields in ({"functions": [{"name": "f" * 40_000}]}, {"chat_template_kwargs": {"a": "b" * 40_000}}):
        error = await refusal(api, CHAT, fields)
        assert error["param"] == next(iter(fields))
    long = await api.chat(transforms=["a" * 40_000], metadata={"a": ["b" * 40_000]}, max_tokens=1)
    assert [warning.split("`")[1] for warning in long["warnings"]] == ["transforms", "metadata"]


def test_every_known_field_has_a_source_and_is_in_the_guide_for_clients() -> None:
    guide = Path("docs/clients.md").read_text("utf-8")
    for prefix, table in [*NESTED.items(), *(("", table) for _, table, _ in ENDPOINTS.values())]:
        for name, field in table.items():
            assert field.sources, name
            assert f"| `{prefix}{name}` | {field.sources} |" in guide, name


async def test_fields_inside_messages_and_calls_are_named_by_their_place(api: Api) -> None:
    call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}", "parsed_arguments": {}}}
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "hi", "cache_control": {"type": "ephemeral"}}]},
        {"role": "assistant", "tool_calls": [call], "annotations": [], "thinking_blocks": [{"thinking": "x"}]},
        {"role": "tool", "tool_call_id": "a", "content": "b", "provider_specific_fields": {}},
    ]
    answer = await api.chat(messages=messages)
    places = {
        "messages[].cache_control",
        "messages[].thinking_blocks",
        "messages[].provider_specific_fields",
        "messages[].tool_calls[].function.parsed_arguments",
    }
    assert {warning.split("`")[1] for warning in answer["warnings"]} == places
    assert {place for place in places if api.sample("ignored_fields_total", field=place)} == places


async def test_the_document_lists_what_is_accepted_without_effect(api: Api) -> None:
    schemas = (await api.http.get("/openapi.json")).json()["components"]["schemas"]
    for schema, table, _ in ENDPOINTS.values():
        listed = schemas[schema.__name__]["x-accepted-without-effect"]
        assert "user" in listed
        assert set(listed) == {name for name, field in table.items() if not field.is_refused} - set(schema.model_fields)


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/embeddings", {"embed_dtype": "float16"}),  # other bytes than those the client will read
        ("/v1/embeddings", {"endianness": "big"}),
        (CHAT, {"options": {"num_predict": 5, "stop": ["a"]}}),
    ],
)
async def test_a_field_whose_loss_would_change_the_form_of_the_answer_is_refused(
    api: Api, path: str, fields: Body
) -> None:
    assert (await refusal(api, path, fields))["param"] == next(iter(fields))


@pytest.mark.parametrize(
    ("path", "fields"),
    [("/v1/embeddings", {"embed_dtype": "float32", "endianness": "little"}), (CHAT, {"options": {}})],
)
async def test_its_harmless_value_is_accepted(api: Api, path: str, fields: Body) -> None:
    assert "warnings" not in answered(await api.http.post(path, json=ENDPOINTS[path][2] | fields))
