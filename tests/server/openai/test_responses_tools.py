"""Agents over /v1/responses: custom tools, namespaces, tools that are left out, and items that are played back."""

import json
from typing import Any

import pytest

from caravan.server.openai.protocol.custom_input import arguments_of_input, input_of_arguments
from caravan.server.openai.protocol.response_tools import function_name
from caravan.server.openai.tool_calls.call_format import HERMES
from caravan.server.sandbox.chat_template import ChatTemplate
from tests.server.openai.api import Api, Body, answered, open_api
from tests.support.fakes import says
from tests.support.responses_events import RESPONSES, events_of

PATCH: Body = {
    "type": "custom",
    "name": "apply_patch",
    "description": "Edit files.",
    "format": {"type": "grammar", "syntax": "lark", "definition": 'start: "*** Begin Patch" LF\n%import common.LF'},
}
ECHO: Body = {"type": "function", "name": "echo", "parameters": {"type": "object", "properties": {}}, "strict": False}
AGENTS: Body = {"type": "namespace", "name": "agents", "description": "Other agents.", "tools": [ECHO, PATCH]}
TEXT = 'a "quoted"\nline \u00e9 \U0001f600'


async def respond(api: Api, **fields: Any) -> Body:
    return answered(await api.http.post(RESPONSES, json={"model": "fake", "input": "hi"} | fields))


async def test_a_custom_tool_is_a_function_of_one_text_for_the_model(chat_ml: ChatTemplate) -> None:
    async with open_api(chat_template=chat_ml, max_model_len=8192) as api:
        whole = await respond(api, tools=[PATCH])
        prompt = api.prompt_text()
        assert '"apply_patch"' in prompt
        assert "Edit files." in prompt
        assert "Lark grammar" in prompt
        assert "*** Begin Patch" in prompt
        assert '"required": ["input"]' in prompt
        assert "warnings" not in whole


@pytest.mark.parametrize("namespace", [None, "agents"])
async def test_a_call_of_a_custom_tool_is_an_item_with_its_input(chat_ml: ChatTemplate, namespace: str | None) -> None:
    call = HERMES.written([(function_name("apply_patch", namespace), arguments_of_input(TEXT))])
    async with open_api(says(f"Now. {call}"), chat_template=chat_ml, max_model_len=8192) as api:
        tools = [PATCH] if namespace is None else [AGENTS]
        message, item = (await respond(api, tools=tools))["output"]
        assert message["content"][0]["text"].strip() == "Now."
        assert item.pop("id").startswith("ctc_")
        assert item.pop("call_id").startswith("call_")
        named = {} if namespace is None else {"namespace": namespace}
        expected = {"type": "custom_tool_call", "name": "apply_patch", "input": TEXT, "status": "completed"}
        assert item == expected | named
        events = [one for one in await events_of(api, tools=tools) if one.get("output_index") == 1]
        assert [event["type"] for event in events] == [
            "response.output_item.added",
            *["response.custom_tool_call_input.delta"] * (len(events) - 3),
            "response.custom_tool_call_input.done",
            "response.output_item.done",
        ]
        assert events[0]["item"]["input"] == ""
        deltas = [event["delta"] for event in events[1:-2]]
        assert len(deltas) > 5  # the input is streamed as it comes
        assert "".join(deltas) == events[-2]["input"] == events[-1]["item"]["input"] == TEXT


async def test_tools_of_a_namespace_are_called_by_their_bare_names(chat_ml: ChatTemplate) -> None:
    call = HERMES.written([("agents__echo", "{}")])
    async with open_api(says(call), chat_template=chat_ml, max_model_len=8192) as api:
        whole = await respond(api, tools=[AGENTS, ECHO])
        (item,) = whole["output"]
        assert (item["type"], item["name"], item["namespace"]) == ("function_call", "echo", "agents")
        assert [tool["type"] for tool in whole["tools"]] == ["namespace", "function"]
        assert api.prompt_text().count("Other agents.") == 1


async def test_a_namespaced_tool_can_be_required(chat_ml: ChatTemplate) -> None:
    async with open_api(chat_template=chat_ml, max_model_len=8192) as api:
        for choice in (
            {"type": "custom", "name": "apply_patch"},
            {"type": "function", "name": "echo", "namespace": "agents"},
        ):
            await respond(api, tools=[AGENTS, ECHO], tool_choice=choice)
        assert '\\"agents__apply_patch\\"' in api.engine.grammars[0]
        assert '\\"agents__echo\\"' in api.engine.grammars[1]


def test_names_of_functions_are_short_enough_and_stay_different() -> None:
    names = {function_name("f" * 60 + str(number), "n" * 60) for number in range(10)}
    assert len(names) == 10
    assert {len(name) for name in names} == {64}
    assert function_name("a", "b") == "b__a"


@pytest.mark.parametrize("text", ["", "plain", TEXT, '{"input": 1}', "\\", "\u0000"])
def test_an_input_is_the_same_after_conversion_to_arguments(text: str) -> None:
    arguments = arguments_of_input(text)
    assert input_of_arguments(arguments) == text
    assert input_of_arguments(json.dumps({"input": text})) == text
    for length in range(len('{"input": "'), len(arguments)):  # cut off anywhere
        assert text.startswith(input_of_arguments(arguments[:length]))


@pytest.mark.parametrize("arguments", ["", "no JSON", "[]", '{"input": 5}', '{"other": "a"}'])
def test_arguments_without_an_input_are_returned_unchanged(arguments: str) -> None:
    assert input_of_arguments(arguments) == arguments


async def test_unsupported_tools_are_left_out_with_a_warning(chat_ml: ChatTemplate) -> None:
    kinds = ("web_search", "tool_search", "image_generation", "mcp", "local_shell")
    tools = [{"type": kind, "anything": {"at": "all"}} for kind in kinds]
    async with open_api(chat_template=chat_ml, max_model_len=8192) as api:
        whole = await respond(api, tools=[*tools, ECHO])
        assert whole["warnings"] == [
            f"Tools of type `{kind}` are left out: this server does not have them." for kind in kinds
        ]
        assert [tool["type"] for tool in whole["tools"]] == ["function"]
        assert not any(kind in api.prompt_text() for kind in kinds)
        assert api.sample("ignored_fields_total", field="tools[].web_search") == 1
        for choice in ("required", {"type": "web_search"}):
            refused = await api.http.post(
                RESPONSES, json={"model": "fake", "input": "hi", "tools": tools, "tool_choice": choice}
            )
            assert refused.status_code == 400
            assert refused.json()["error"]["param"] == "tool_choice"


async def test_tools_in_the_input_are_tools_of_the_request(chat_ml: ChatTemplate) -> None:
    items: list[Body] = [
        {"type": "additional_tools", "role": "developer", "tools": [AGENTS]},
        {"role": "user", "content": "hi"},
    ]
    call = HERMES.written([("agents__echo", "{}")])
    async with open_api(says(call), chat_template=chat_ml, max_model_len=8192) as api:
        (item,) = (await respond(api, input=items))["output"]
        assert (item["name"], item["namespace"]) == ("echo", "agents")
        items[0]["tools"] = [{"type": "function", "nam": "x"}]
        refused = await api.http.post(RESPONSES, json={"model": "fake", "input": items})
        assert refused.json()["error"]["param"] == "input[0].tools[0].nam"


async def test_items_that_an_agent_sends_back_are_read(api: Api) -> None:
    items = [
        {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "Be brief."}]},
        {"type": "message", "id": "msg_1", "role": "user", "content": [{"type": "input_text", "text": "go"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": None, "encrypted_content": "opaque"},
        {
            "type": "message",
            "id": "msg_2",
            "role": "assistant",
            "status": "completed",
            "phase": "commentary",
            "content": [{"type": "output_text", "text": "Going.", "annotations": [], "logprobs": []}],
        },
        {
            "type": "function_call",
            "id": "fc_1",
            "call_id": "call_1",
            "name": "echo",
            "namespace": "agents",
            "arguments": "{}",
            "status": "completed",
        },
        {"type": "function_call_output", "id": "fco_1", "call_id": "call_1", "output": "went"},
        {"type": "custom_tool_call", "id": "ctc_1", "call_id": "call_2", "name": "apply_patch", "input": TEXT},
        {
            "type": "custom_tool_call_output",
            "id": "ctco_1",
            "call_id": "call_2",
            "output": [{"type": "input_text", "text": "patched"}],
        },
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "I will not."}]},
    ]
    whole = await respond(api, input=items, include=["reasoning.encrypted_content"], store=False)
    text = api.prompt_text()
    parts = ["Be brief.", "go", "Going.", "agents__echo", "went", "apply_patch", "patched", "I will not."]
    assert [text.index(part) for part in parts] == sorted(text.index(part) for part in parts)
    assert text.count("<|im_start|>assistant") == 4  # the text and its call are one turn
    assert json.dumps(TEXT, ensure_ascii=False)[1:-1] in text
    assert "`input[].phase` has no effect on this server." in whole["warnings"]
    assert not any("`include`" in warning for warning in whole["warnings"])
    assert "message.output_text" not in json.dumps(whole["warnings"])
    assert whole["output"][-1]["content"][0]["logprobs"] == []


@pytest.mark.parametrize("after", [[], [{"role": "user", "content": "go on"}]])
async def test_reasoning_without_a_text_or_call_after_it_is_a_warning(chat_ml: ChatTemplate, after: list[Body]) -> None:
    thought = {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Hm."}]}
    async with open_api(chat_template=chat_ml) as api:
        whole = await respond(api, input=[{"role": "user", "content": "go"}, thought, *after])
    assert any("`reasoning`" in warning for warning in whole["warnings"])


async def test_calls_of_an_answer_can_be_sent_back(chat_ml: ChatTemplate) -> None:
    call = HERMES.written([("agents__apply_patch", arguments_of_input(TEXT)), ("echo", "{}")])
    async with open_api(says(call), chat_template=chat_ml, max_model_len=8192) as api:
        output = (await respond(api, tools=[AGENTS, ECHO]))["output"]
        results = [
            {"type": f"{item['type'].removesuffix('_call')}_call_output", "call_id": item["call_id"], "output": "ok"}
            for item in output
        ]
        await respond(api, tools=[AGENTS, ECHO], input=[{"role": "user", "content": "hi"}, *output, *results])
        assert "agents__apply_patch" in api.prompt_text()


@pytest.mark.parametrize(
    ("item", "param"),
    [
        ({"type": "reasoning", "summary": "no list"}, "input[0].summary"),
        ({"type": "reasoning", "content": [{"type": "reasoning_text"}]}, "input[0].content"),
        ({"type": "custom_tool_call", "call_id": "a", "name": "f", "input": {}}, "input[0].input"),
        (
            {"type": "function_call", "call_id": "a", "name": "f", "arguments": "{}", "namespace": 5},
            "input[0].namespace",
        ),
        ({"type": "item_reference", "id": "x"}, "input[0]"),
        ({"type": ["message"]}, "input[0]"),
        ({"type": "additional_tools", "tools": 5}, "input[0].tools"),
    ],
)
async def test_a_wrong_item_is_named(api: Api, item: Body, param: str) -> None:
    refused = await api.http.post(RESPONSES, json={"model": "fake", "input": [item]})
    assert refused.status_code == 400, refused.text
    assert refused.json()["error"]["param"] == param
    assert api.engine.submitted == []


async def test_sampling_fields_mean_what_they_mean_in_a_chat(api: Api) -> None:
    fields: Body = {
        "top_k": 3,
        "min_p": 0.1,
        "repetition_penalty": 1.2,
        "presence_penalty": 0.5,
        "frequency_penalty": -0.5,
        "logit_bias": {"97": 2},
        "seed": 5,
        "stop": ["lo"],
        "stop_token_ids": [33],
        "ignore_eos": True,
        "min_tokens": 1,
        "temperature": 0.5,
        "top_p": 0.9,
    }
    chat = await api.chat(**fields, max_completion_tokens=40)
    response = await respond(api, **fields, max_output_tokens=40)
    assert api.engine.submitted[0][1] == api.engine.submitted[1][1]
    assert response["output"][0]["content"][0]["text"] == chat["choices"][0]["message"]["content"] == "Hel"
    assert "warnings" not in response


async def test_token_ids_are_returned_with_a_response(api: Api) -> None:
    chat = await api.chat(return_token_ids=True)
    ids = {"prompt_token_ids": chat["prompt_token_ids"], "token_ids": chat["choices"][0]["token_ids"]}
    whole = await respond(api, return_token_ids=True)
    assert {name: whole[name] for name in ids} == ids
    last = (await events_of(api, return_token_ids=True))[-1]["response"]
    assert {name: last[name] for name in ids} == ids
    assert "token_ids" not in await respond(api)


@pytest.mark.parametrize("end", ['"}', ""])
async def test_half_a_surrogate_pair_in_the_input_of_a_custom_tool_is_a_replacement_character(
    chat_ml: ChatTemplate, end: str
) -> None:
    answer = HERMES.written([("apply_patch", '{"input": "a\\ud83d' + end)])
    tool = {"type": "custom", "name": "apply_patch"}
    async with open_api(says(answer), chat_template=chat_ml, max_model_len=4096) as api:
        (item,) = (await respond(api, tools=[tool]))["output"]
        assert item["input"].startswith("a\ufffd")
        events = await events_of(api, tools=[tool])
        assert events[-1]["type"] == "response.completed"
        assert events[-1]["response"]["output"][0]["input"] == item["input"]
