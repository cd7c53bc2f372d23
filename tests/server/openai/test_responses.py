"""POST /v1/responses: the newer form, with the official client and by hand."""

from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest

from caravan.server.openai.tool_calls.call_format import HERMES
from caravan.server.sandbox.chat_template import ChatTemplate
from tests.server.openai.api import Api, answered, open_api
from tests.support.fakes import says
from tests.support.official_client import official
from tests.support.responses_events import RESPONSES, events_of

WEATHER = {"type": "function", "name": "weather", "parameters": {"type": "object", "properties": {}}, "strict": False}
CALL = HERMES.written([("weather", "{}")])


@pytest.fixture
async def client(api: Api) -> AsyncIterator[openai.AsyncOpenAI]:
    async with official(api) as opened:
        yield opened


async def test_a_text_input_has_a_text_output(client: openai.AsyncOpenAI, api: Api) -> None:
    response = await client.responses.create(model="fake", input="hi", instructions="Be kind.", metadata={"a": "b"})
    assert response.output_text == "Hello!"
    assert response.status == "completed"
    assert response.usage is not None
    assert response.usage.output_tokens == len("Hello!") + 1
    assert response.usage.input_tokens == len(api.engine.submitted[0][0])
    assert response.metadata == {"a": "b"}
    assert api.prompt_text().startswith("<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nhi")


async def test_a_stream_has_its_events_in_order(api: Api) -> None:
    events = await events_of(api)
    names = [event["type"] for event in events]
    assert names[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert names[4:-4] == ["response.output_text.delta"] * (len(names) - 8)
    assert names[-4:] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert "".join(event["delta"] for event in events[4:-4]) == events[-4]["text"] == "Hello!"
    whole = answered(await api.http.post(RESPONSES, json={"model": "fake", "input": "hi"}))
    last = events[-1]["response"]
    changing = {"id", "created_at", "output"}
    assert {name: last[name] for name in last.keys() - changing} == {
        name: whole[name] for name in whole.keys() - changing
    }
    assert last["output"][0]["content"] == whole["output"][0]["content"]


async def test_the_official_stream_helper_gathers_it(client: openai.AsyncOpenAI) -> None:
    async with client.responses.stream(model="fake", input="hi") as stream:
        final = await stream.get_final_response()
    assert final.output_text == "Hello!"


async def test_a_truncated_response_is_incomplete(api: Api) -> None:
    whole = answered(await api.http.post(RESPONSES, json={"model": "fake", "input": "hi", "max_output_tokens": 2}))
    assert whole["status"] == "incomplete"
    assert whole["incomplete_details"] == {"reason": "max_output_tokens"}
    assert whole["output"][0]["content"][0]["text"] == "He"
    assert (await events_of(api, max_output_tokens=2))[-1]["type"] == "response.incomplete"


async def test_messages_and_calls_make_the_prompt(api: Api) -> None:
    items = [
        {"role": "developer", "content": "Be kind."},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "weather?"}]},
        {"type": "function_call", "call_id": "call_1", "name": "weather", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "call_1", "output": "rain"},
    ]
    answered(await api.http.post(RESPONSES, json={"model": "fake", "input": items, "tools": [WEATHER]}))
    text = api.prompt_text()
    assert text.index("Be kind.") < text.index("weather?") < text.index(CALL + "<|im_end|>") < text.index("rain")


async def test_calls_are_separate_items(chat_ml: ChatTemplate) -> None:
    async with (
        open_api(says(f"Let me see. {CALL}"), chat_template=chat_ml, max_model_len=4096) as api,
        official(api) as client,
    ):
        response = await client.responses.create(model="fake", input="hi", tools=[WEATHER])  # type: ignore[list-item]
        assert [item.type for item in response.output] == ["message", "function_call"]
        call = response.output[1]
        assert call.type == "function_call"
        assert (call.name, call.arguments, call.status) == ("weather", "{}", "completed")
        events = await events_of(api, tools=[WEATHER])
        deltas = [event["delta"] for event in events if event["type"] == "response.function_call_arguments.delta"]
        assert "".join(deltas) == "{}"
        done = next(event for event in events if event["type"] == "response.function_call_arguments.done")
        assert (done["name"], done["arguments"]) == ("weather", "{}")


async def test_the_format_of_the_text_becomes_a_grammar(api: Api) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    text = {"format": {"type": "json_schema", "name": "thing", "schema": schema, "strict": True}}
    answered(await api.http.post(RESPONSES, json={"model": "fake", "input": "hi", "text": text}))
    assert '"integer"' in api.engine.grammars[0]


async def test_log_probabilities_are_returned_with_the_text(api: Api) -> None:
    fields = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
    whole = answered(await api.http.post(RESPONSES, json={"model": "fake", "input": "hi"} | fields))
    logprobs = whole["output"][0]["content"][0]["logprobs"]
    assert [entry["token"] for entry in logprobs] == list("Hello!")
    assert all(len(entry["top_logprobs"]) == 2 for entry in logprobs)


async def test_a_stream_that_fails_ends_with_response_failed(api: Api) -> None:
    api.engine.dies_after = 2
    last = (await events_of(api))[-1]
    assert last["type"] == "response.failed"
    assert last["response"]["error"]["code"] == "unavailable"


async def test_what_has_no_effect_is_named(api: Api) -> None:
    whole = answered(await api.http.post(RESPONSES, json={"model": "fake", "input": "hi", "store": True}))
    assert whole["warnings"] == ["`store` has no effect on this server."]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": [{"type": "image"}]}, "input[0]"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content"),
        ({"input": [{"role": "user", "content": "x", "colour": 1}]}, "input[0].colour"),
        ({"input": [{"role": "nobody", "content": "x"}]}, "input[0].role"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"text": {"format": {"type": "xml"}}}, "text.format"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"tools": [{"type": "abacus"}]}, "tools[0]"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"unknown": 1}, "unknown"),
    ],
)
async def test_a_wrong_field_is_400_and_named(api: Api, fields: dict[str, Any], param: str) -> None:
    response = await api.http.post(RESPONSES, json={"model": "fake", "input": "hi"} | fields)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param
    assert api.engine.submitted == []


TALK = f"Let me see.\n{CALL}\nDone."


@pytest.mark.parametrize("logprobs", [{}, {"top_logprobs": 1}])
@pytest.mark.parametrize("text", [CALL, TALK, f"{CALL}\nDone.", "No call."])
async def test_a_stream_has_the_items_of_the_whole_answer_in_their_order(
    chat_ml: ChatTemplate, text: str, logprobs: dict[str, Any]
) -> None:
    async with open_api(says(text), chat_template=chat_ml, max_model_len=4096) as api:
        fields: dict[str, Any] = {"tools": [WEATHER], "max_output_tokens": 300} | logprobs
        body = {"model": "fake", "input": "hi"} | fields
        whole = answered(await api.http.post(RESPONSES, json=body))
        events = await events_of(api, **fields)
        assert events[-1]["type"] == "response.completed"
        last = events[-1]["response"]

        def shown(item: dict[str, Any]) -> object:
            return item.get("arguments") or [part["text"] for part in item["content"]]

        assert [shown(item) for item in last["output"]] == [shown(item) for item in whole["output"]]
        done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
        assert [shown(item) for item in done] == [shown(item) for item in whole["output"]]
        for item in (*last["output"], *whole["output"]):
            for part in item.get("content", []):
                assert bool(part["logprobs"]) == bool(logprobs)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": [{"role": "user", "content": [{"type": "input_text", "text": "a", "extra": 1}]}]}, "EXTRA"),
        ({"input": [{"role": "user", "content": "a", "id": {"x": 1}}]}, "input[0].id"),
        ({"input": [{"role": "user", "content": "a", "status": 7}]}, "input[0].status"),
        ({"instructions": "x", "input": [{"role": "bogus", "content": "a"}]}, "input[0].role"),
        (
            {"instructions": "x", "input": [{"role": "user", "content": "a"}, {"role": 1, "content": "a"}]},
            "input[1].role",
        ),
        ({"text": {"format": {"type": "json_schema", "name": "a", "schema": {"type": "frob"}}}}, "text.format"),
        ({"tool_choice": 5}, "tool_choice"),
    ],
)
async def test_an_invalid_field_is_named_as_it_was_sent(api: Api, fields: dict[str, Any], param: str) -> None:
    refused = await api.http.post(RESPONSES, json={"model": "fake", "input": "hi"} | fields)
    assert refused.status_code == 400
    error = refused.json()["error"]
    param = {"EXTRA": "input[0].content[0].extra", "SECOND": "input[1].role"}.get(param, param)
    assert error["param"] == param
    assert f"`{error['param']}" in error["message"]
    assert api.engine.submitted == []


async def test_an_answer_of_ours_can_be_sent_back(api: Api) -> None:
    first = answered(await api.http.post(RESPONSES, json={"model": "fake", "input": "hi", "top_logprobs": 1}))
    again = [{"role": "user", "content": "hi"}, *first["output"], {"role": "user", "content": "more"}]
    assert (await api.http.post(RESPONSES, json={"model": "fake", "input": again})).status_code == 200
