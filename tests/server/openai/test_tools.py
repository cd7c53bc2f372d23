"""Tools in a chat: into the prompt, out of the answer, streamed and whole."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from llguidance import LLMatcher, LLTokenizer

from caravan.server.openai.tool_calls.call_format import HERMES
from caravan.server.sandbox.chat_template import ChatTemplate
from tests.server.openai.api import CHAT, CHAT_ML, Api, Body, a_chat, open_api
from tests.support.fakes import says
from tests.support.tools import TIME, WEATHER

ARGUMENTS = '{"city": "Paris"}'
CALL = HERMES.written([("weather", ARGUMENTS)])
TEMPLATE = "{% for tool in tools or [] %}[{{ tool.function.name }}]{% endfor %}" + CHAT_ML.replace(
    "{{ message.content }}",
    "{{ message.content }}"
    "{% for call in message.tool_calls or [] %}<tool_call>{{ call.function.arguments.city }}{% endfor %}",
)


@pytest.fixture
async def caller(chat_ml: ChatTemplate) -> AsyncIterator[Api]:
    """A model that calls the weather; its template knows no tools."""
    async with open_api(says(f"Let me see.\n{CALL}"), chat_template=chat_ml, max_model_len=4096) as api:
        yield api


async def test_a_call_is_separated_from_the_content(caller: Api) -> None:
    choice = (await caller.chat(tools=[WEATHER]))["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] == "Let me see.\n"
    (call,) = choice["message"]["tool_calls"]
    assert call == {"id": call["id"], "type": "function", "function": {"name": "weather", "arguments": ARGUMENTS}}
    assert call["id"].startswith("call_")


async def test_streamed_calls_equal_those_of_a_whole_response(caller: Api) -> None:
    chunks = await caller.stream(CHAT, tools=[WEATHER])
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert "".join(delta.get("content") or "" for delta in deltas) == "Let me see.\n"
    parts = [part for delta in deltas for part in delta.get("tool_calls", [])]
    assert parts[0]["function"]["name"] == "weather"
    assert (parts[0]["index"], parts[0]["type"]) == (0, "function")
    assert parts[0]["id"].startswith("call_")
    assert all(set(part) == {"index", "function"} for part in parts[1:])
    assert "".join(part["function"]["arguments"] for part in parts) == ARGUMENTS
    assert len(parts) > 5
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)


@pytest.mark.parametrize("fields", [{}, {"tools": [WEATHER], "tool_choice": "none"}, {"tools": []}])
async def test_without_tools_all_is_content(caller: Api, fields: dict[str, Any]) -> None:
    choice = (await caller.chat(**fields))["choices"][0]
    assert choice["message"]["content"] == f"Let me see.\n{CALL}"
    assert choice["finish_reason"] == "stop"
    assert "weather" not in caller.prompt_text()


async def test_a_template_without_tools_gets_them_in_the_system_message(caller: Api) -> None:
    await caller.chat(tools=[WEATHER, TIME])
    assert caller.prompt_text().startswith("<|im_start|>system\n")
    assert json.dumps(WEATHER) in caller.prompt_text()
    await caller.chat(tools=[TIME], messages=[{"role": "system", "content": "Be kind."}, *a_chat()["messages"]])
    assert caller.prompt_text().startswith("<|im_start|>system\nBe kind.\n\n")
    assert caller.prompt_text().count("<|im_start|>system") == 1


def conversation() -> list[dict[str, Any]]:
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": ARGUMENTS}}
    return [
        *a_chat("hi")["messages"],
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "rain"},
    ]


async def test_calls_and_their_answers_go_back_into_the_prompt(caller: Api) -> None:
    await caller.chat(tools=[WEATHER], messages=conversation())
    assert f"assistant\n{CALL}<|im_end|>" in caller.prompt_text()
    assert "user\n<tool_response>\nrain\n</tool_response>" in caller.prompt_text()


async def test_a_template_that_knows_tools_gets_them_and_calls_as_objects() -> None:
    template = ChatTemplate(TEMPLATE, "<s>", "</s>")
    try:
        async with open_api(says(CALL), chat_template=template, max_model_len=4096) as api:
            await api.chat(tools=[WEATHER, TIME], messages=conversation())
            assert api.prompt_text().startswith("[weather][time]<|im_start|>user")
            assert "<tool_call>Paris" in api.prompt_text()
            assert "tool\nrain" in api.prompt_text()
    finally:
        template.close()


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
async def test_a_required_call_becomes_a_grammar(caller: Api, choice: object) -> None:
    await caller.chat(tools=[WEATHER, TIME], tool_choice=choice)
    (grammar,) = caller.engine.grammars
    assert "weather" in grammar
    assert ("time" in grammar) == (choice == "required")


@pytest.mark.parametrize(
    ("fields", "is_one"),
    [
        ({"tool_choice": "required"}, False),
        ({"tool_choice": "required", "parallel_tool_calls": False}, True),
        ({"tool_choice": {"type": "function", "function": {"name": "weather"}}}, True),
    ],
)
async def test_a_choice_that_names_a_function_means_one_call(caller: Api, fields: Body, is_one: bool) -> None:
    await caller.chat(tools=[WEATHER, TIME], **fields)
    assert (")*" not in caller.engine.grammars[0]) == is_one


async def test_an_optional_call_has_no_grammar(caller: Api) -> None:
    await caller.chat(tools=[WEATHER], tool_choice="auto")
    assert caller.engine.grammars == [""]


async def test_an_answer_of_several_choices_keeps_them_apart(caller: Api) -> None:
    choices = (await caller.chat(tools=[WEATHER], n=3))["choices"]
    assert len({choice["message"]["tool_calls"][0]["id"] for choice in choices}) == 3


async def test_a_cut_off_call_ends_with_length(caller: Api) -> None:
    choice = (await caller.chat(tools=[WEATHER], max_tokens=len(f"Let me see.\n{CALL}") - 16))["choices"][0]
    assert choice["finish_reason"] == "length"
    assert choice["message"]["tool_calls"][0]["function"]["arguments"] == ARGUMENTS[:-2]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [WEATHER, WEATHER]}, "tools"),
        ({"tools": [{"type": "function", "function": {"name": "no spaces"}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "web"}]}, "tools[0].type"),
        ({"tools": [TIME], "tool_choice": "sometimes"}, "tool_choice"),
        ({"tools": [TIME], "tool_choice": {"type": "function", "function": {"name": "other"}}}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        (
            {
                "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "frob"}}}],
                "tool_choice": "required",
            },
            "tools",
        ),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {"<|im_end|>": 1}}}]}, "tools"),
        ({"tools": [TIME], "tool_choice": "required", "regex": "a"}, "tools"),
        (
            {
                "messages": [
                    {
                        "role": "user",
                        "content": "x",
                        "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "{}"}}],
                    }
                ]
            },
            "messages",
        ),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        (
            {
                "messages": [
                    {"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": [1]}}]}
                ]
            },
            "messages[0].tool_calls[0].function.arguments",
        ),
    ],
)
async def test_wrong_tools_are_400_and_nothing_runs(caller: Api, fields: dict[str, Any], param: str) -> None:
    response = await caller.http.post(CHAT, json=a_chat() | fields)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param
    assert caller.engine.submitted == []


JSON_OBJECT = {"type": "json_object"}


def accepts(grammar: str, text: str) -> bool:
    """Return whether llguidance takes a text as one of the grammar, over tokens that are bytes."""
    tokenizer = LLTokenizer("byte")
    matcher = LLMatcher(tokenizer, grammar)
    return matcher.validate_tokens(tokenizer.tokenize_str(text)) == len(text) and not matcher.is_error()


async def test_beside_a_format_functions_may_be_called_and_need_not(caller: Api) -> None:
    choice = (await caller.chat(tools=[WEATHER], response_format=JSON_OBJECT))["choices"][0]
    assert choice["message"]["tool_calls"][0]["function"]["name"] == "weather"
    (grammar,) = caller.engine.grammars
    assert accepts(grammar, CALL)
    assert accepts(grammar, '{"any": 1}')
    assert not accepts(grammar, "Free text")
    assert not accepts(grammar, HERMES.written([("other", "{}")]))


@pytest.mark.parametrize("form", [{"regex": "a+"}, {"grammar": 'start: "a"'}])
async def test_a_constraint_that_allows_no_call_cannot_be_combined_with_tools(caller: Api, form: Body) -> None:
    refused = await caller.http.post(CHAT, json=a_chat() | {"tools": [WEATHER]} | form)
    assert refused.json()["error"]["param"] == "tools"
    await caller.chat(tools=[WEATHER], tool_choice="none", **form)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_call_that_a_stop_string_cuts_off_is_not_said_to_be_one(caller: Api, stream: bool) -> None:
    fields: Body = {"tools": [WEATHER], "stop": ['is"}']}
    if stream:
        choice = (await caller.stream(CHAT, **fields))[-1]["choices"][0]
    else:
        choice = (await caller.chat(**fields))["choices"][0]
    assert choice["finish_reason"] == "stop"


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
async def test_a_stop_string_does_not_cut_a_required_call(caller: Api, choice: Any) -> None:
    fields: Body = {"tools": [WEATHER], "tool_choice": choice, "stop": ['"', "Paris"]}
    answer = await caller.chat(**fields)
    unstopped = await caller.chat(**fields | {"stop": []})
    assert answer["warnings"] == ["Stop strings have no effect on a call that `tool_choice` requires."]
    assert "warnings" not in unstopped
    (call,) = answer["choices"][0]["message"]["tool_calls"]
    assert call["function"] == unstopped["choices"][0]["message"]["tool_calls"][0]["function"]
    assert answer["choices"][0]["finish_reason"] == "tool_calls"
    body = {"model": "fake", "input": "hi", "tools": [{"type": "function", **WEATHER["function"]}]}  # type: ignore[dict-item]
    response = await caller.http.post("/v1/responses", json=body | {"tool_choice": "required", "stop": ['"']})
    assert response.json()["output"][-1]["arguments"] == call["function"]["arguments"]
    assert answer["warnings"][0] in response.json()["warnings"]


async def test_strict_without_effect_is_a_warning(caller: Api) -> None:
    strict = {**WEATHER, "function": {**WEATHER["function"], "strict": True}}  # type: ignore[dict-item]
    lax = {**WEATHER, "function": {**WEATHER["function"], "strict": False}}  # type: ignore[dict-item]
    assert "strict" in (await caller.chat(tools=[strict]))["warnings"][0]
    assert "warnings" not in await caller.chat(tools=[strict], tool_choice="required")
    assert "strict" in (await caller.chat(tools=[lax], tool_choice="required"))["warnings"][0]
    assert "warnings" not in await caller.chat(tools=[lax])
    schema = {"type": "json_schema", "json_schema": {"name": "a", "description": "b", "schema": {}, "strict": False}}
    assert [warning.split("`")[1] for warning in (await caller.chat(response_format=schema))["warnings"]] == [
        "response_format.json_schema.description",
        "response_format.json_schema.strict",
    ]


async def test_a_conversation_with_tools_is_written_by_the_template_for_tools() -> None:
    template = ChatTemplate("plain{{ messages[0].content }}", "<s>", "</s>", tool_use=ChatTemplate(TEMPLATE, "", ""))
    try:
        async with open_api(says(CALL), chat_template=template, max_model_len=4096) as api:
            await api.chat(tools=[WEATHER], messages=conversation())
            assert api.prompt_text().startswith("[weather]<|im_start|>user")
            await api.chat(messages=[{"role": "user", "content": "hi"}])
            assert api.prompt_text() == "plainhi"
            await api.chat(tools=[], messages=[{"role": "user", "content": "hi"}])
            assert api.prompt_text() == "plainhi"
    finally:
        template.close()
