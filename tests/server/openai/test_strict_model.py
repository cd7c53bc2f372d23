"""Numbers without a fraction are integers, and values that mean "none" are taken as none."""

import json
from typing import Any

import pytest

from caravan.model.sampling.generation_defaults import GenerationDefaults
from caravan.server.openai.protocol.chat import ChatRequest
from caravan.server.openai.protocol.completions import CompletionRequest
from caravan.server.openai.protocol.embeddings import EmbeddingRequest
from caravan.server.openai.protocol.responses import ResponsesRequest
from caravan.server.openai.protocol.strict_model import StrictModel
from caravan.server.openai.protocol.tokenize import DetokenizeRequest, TokenizeRequest
from caravan.server.sandbox.chat_template import ChatTemplate
from tests.server.openai.api import CHAT, COMPLETIONS, Api, Body, a_chat, answered, open_api

JSON = {"content-type": "application/json"}
BODIES: dict[type[StrictModel], Body] = {
    CompletionRequest: {"model": "m", "prompt": "hi"},
    ChatRequest: a_chat(),
    ResponsesRequest: {"model": "m", "input": "hi"},
    EmbeddingRequest: {"model": "m", "input": "hi"},
    TokenizeRequest: {"prompt": "hi"},
    DetokenizeRequest: {"tokens": [1]},
}


def integer_fields(schema: type[StrictModel]) -> dict[str, bool]:
    """Return the fields of integers by what the OpenAPI document says, and whether they are lists."""
    found = {}
    for name, field in schema.model_json_schema()["properties"].items():
        for kind in (field, *field.get("anyOf", [])):
            if kind.get("type") == "integer":
                found[name] = False
            if kind.get("type") == "array" and kind["items"].get("type") == "integer":
                found[name] = True
    return found


@pytest.mark.parametrize("schema", BODIES)
def test_a_number_without_a_fraction_is_an_integer_in_every_field(schema: type[StrictModel]) -> None:
    fields = integer_fields(schema)
    assert len(fields) >= (7 if schema in (CompletionRequest, ChatRequest, ResponsesRequest) else 0)
    for name, is_list in fields.items():
        companions: Body = {"logprobs": True} if name == "top_logprobs" and schema is ChatRequest else {}
        companions |= {"n": 2} if name == "best_of" else {}
        values = {}
        for value in (2, 2.0):
            body = BODIES[schema] | companions | {name: [value] if is_list else value}
            values[type(value)] = getattr(schema.model_validate(body), name)
        assert values[int] == values[float], name
        (integer,) = values[float][0:1] if is_list else [values[float]]
        assert type(integer[0] if isinstance(integer, list) else integer) is int, name


@pytest.mark.parametrize("written", ["1024.0", "1.024e3", "10240e-1"])
async def test_every_way_of_writing_an_integer_is_taken(written: str) -> None:
    async with open_api(max_model_len=4096) as api:
        body = json.dumps({"model": "fake", "prompt": "hi", "max_tokens": 7}).replace("7", written)
        answered(await api.http.post(COMPLETIONS, content=body, headers=JSON))
        assert api.engine.submitted[0][1].max_tokens == 1024


@pytest.mark.parametrize("number", [1.5, 2.0**53 + 2, 1e300, "1", True])
async def test_other_numbers_are_no_integers(api: Api, number: object) -> None:
    for fields in ({"n": number}, {"stop_token_ids": [number]}):
        response = await api.http.post(COMPLETIONS, json={"model": "fake", "prompt": "hi"} | fields)
        assert response.status_code == 400
        assert response.json()["error"]["param"].startswith(next(iter(fields)))


@pytest.mark.parametrize("prompt", [[97.0, 98], [[97.0], [98.0, 99]]])
async def test_token_ids_may_be_written_with_a_point(api: Api, prompt: list[Any]) -> None:
    await api.complete(prompt=prompt)
    assert [type(token_id) for token_id in api.engine.submitted[0][0]] == [int] * len(api.engine.submitted[0][0])
    assert api.engine.submitted[0][0][0] == 97


@pytest.mark.parametrize("field", ["prompt", "stop_token_ids", "max_tokens"])
async def test_threat_2_deep_lists_in_fields_of_integers_are_refused(api: Api, field: str) -> None:
    content = json.dumps({"model": "fake", "prompt": "hi", field: 1}).replace(f'"{field}": 1', f'"{field}": NESTED')
    content = content.replace("NESTED", "[" * 120 + "1.0" + "]" * 120)
    response = await api.http.post(COMPLETIONS, content=content, headers=JSON)
    assert response.status_code == 400
    assert field in response.json()["error"]["message"]


async def test_numbers_in_schemas_reach_the_model_as_they_were_sent(chat_ml: ChatTemplate) -> None:
    parameters = {"type": "object", "properties": {"a": {"type": "number", "minimum": 5.0, "maximum": 7}}}
    async with open_api(chat_template=chat_ml, max_model_len=4096) as api:
        await api.chat(tools=[{"type": "function", "function": {"name": "f", "parameters": parameters}}])
        assert '"minimum": 5.0, "maximum": 7}' in api.prompt_text()


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        (COMPLETIONS, {"stop": ""}),
        (COMPLETIONS, {"stop": []}),
        (COMPLETIONS, {"stop": None}),
        (COMPLETIONS, {"logprobs": False}),
        (COMPLETIONS, {"logprobs": None, "n": None, "logit_bias": None}),
        (COMPLETIONS, {"logit_bias": {}, "stop_token_ids": [], "response_format": {"type": "text"}}),
        (CHAT, {"stop": ""}),
        (CHAT, {"top_logprobs": 0}),
        (CHAT, {"top_logprobs": 0, "logprobs": False}),
        (CHAT, {"tools": [], "tool_choice": "auto", "stream_options": None}),
        (CHAT, {"tools": None, "tool_choice": "none", "parallel_tool_calls": True}),
        (CHAT, {"top_k": -1, "min_p": 0}),
        ("/v1/responses", {"top_logprobs": 0, "tools": [], "stop": "", "top_k": -1}),
    ],
)
async def test_values_that_disable_a_field_change_nothing(api: Api, path: str, fields: Body) -> None:
    body = {COMPLETIONS: {"model": "fake", "prompt": "hi"}, CHAT: a_chat()}.get(path, {"model": "fake", "input": "hi"})
    plain = answered(await api.http.post(path, json=body | {"seed": 1}))
    with_fields = answered(await api.http.post(path, json=body | {"seed": 1} | fields))
    assert api.engine.submitted[0][1] == api.engine.submitted[1][1]
    changing = {"id", "created", "created_at", "output"}
    assert {name: plain[name] for name in plain.keys() - changing} == {
        name: with_fields[name] for name in with_fields.keys() - changing
    }
    if path == "/v1/responses":
        assert plain["output"][0]["content"] == with_fields["output"][0]["content"]


async def test_the_seed_minus_one_means_no_seed(api: Api) -> None:
    await api.complete(seed=-1, n=2)
    await api.complete(seed=-1)
    seeds = {submitted[1].seed for submitted in api.engine.submitted}
    assert len(seeds) == 3


async def test_all_tokens_may_be_asked_for_where_the_model_suggests_fewer() -> None:
    async with open_api(defaults=GenerationDefaults(top_k=5)) as api:
        await api.complete()
        await api.complete(top_k=-1)
        assert [submitted[1].top_k for submitted in api.engine.submitted] == [5, 0]
