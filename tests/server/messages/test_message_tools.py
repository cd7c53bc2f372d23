"""Tools of /v1/messages: offered as the functions of a chat, chosen, enforced, and those that are left out."""

from collections.abc import AsyncIterator

import pytest

from caravan.server.openai.protocol.response_tools import function_name
from caravan.server.openai.tool_calls.call_format import HERMES
from caravan.server.sandbox.chat_template import ChatTemplate
from tests.server.openai.api import Api, Body, open_api
from tests.support import tools as chat_tools
from tests.support.fakes import says
from tests.support.message_events import WEATHER, message_of, refused
from tests.support.templates import WITH_CALLS

SEARCH: Body = {"type": "web_search_20250305", "name": "web_search", "max_uses": 5}


@pytest.fixture
async def wide(chat_ml: ChatTemplate) -> AsyncIterator[Api]:
    async with open_api(chat_template=chat_ml, max_model_len=8192) as api:
        yield api


async def test_a_tool_is_the_function_of_a_chat(wide: Api) -> None:
    await wide.chat(tools=[chat_tools.WEATHER])
    for tool in (WEATHER, WEATHER | {"type": "custom"}, WEATHER | {"type": None}):
        await message_of(wide, tools=[tool])
        assert wide.prompt_text() == wide.prompt_text(0)


@pytest.mark.parametrize(
    ("choice", "chat_choice"),
    [
        ({"type": "auto"}, {}),
        ({"type": "any"}, {"tool_choice": "required"}),
        ({"type": "any", "disable_parallel_tool_use": True}, {"tool_choice": "required", "parallel_tool_calls": False}),
        ({"type": "none"}, {"tool_choice": "none"}),
        ({"type": "tool", "name": "weather"}, {"tool_choice": {"type": "function", "function": {"name": "weather"}}}),
    ],
)
async def test_a_choice_means_what_it_means_in_a_chat(wide: Api, choice: Body, chat_choice: Body) -> None:
    await wide.chat(tools=[chat_tools.WEATHER], **chat_choice)
    await message_of(wide, tools=[WEATHER], tool_choice=choice)
    assert wide.prompt_text(0) == wide.prompt_text(1)
    assert wide.engine.grammars[0] == wide.engine.grammars[1]
    assert bool(wide.engine.grammars[0]) == (choice["type"] in ("any", "tool"))


async def test_one_call_at_most_where_parallel_calls_are_switched_off(chat_ml: ChatTemplate) -> None:
    two = HERMES.written([("weather", "{}"), ("weather", "{}")])
    async with open_api(says(two), chat_template=chat_ml, max_model_len=8192) as api:
        for is_off in (False, True):
            choice = {"type": "auto", "disable_parallel_tool_use": is_off}
            message = await message_of(api, tools=[WEATHER], tool_choice=choice)
            assert len(message["content"]) == 2 - is_off


async def test_a_long_name_is_shortened_for_the_model_and_whole_for_the_client(chat_ml: ChatTemplate) -> None:
    name = "mcp__" + "n" * 100
    call = HERMES.written([(function_name(name, None), "{}")])
    async with open_api(says(call), chat_template=chat_ml, max_model_len=8192) as api:
        fields: Body = {"tools": [WEATHER | {"name": name}], "tool_choice": {"type": "tool", "name": name}}
        message = await message_of(api, **fields)
        (block,) = message["content"]
        assert block["name"] == name
        assert name not in api.prompt_text()
        answer = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": [block]}]
        results = [{"type": "tool_result", "tool_use_id": block["id"], "content": "x"}]
        await message_of(api, messages=[*answer, {"role": "user", "content": results}], tools=fields["tools"])
        assert function_name(name, None) in api.prompt_text().split("assistant\n")[1]


async def test_ids_of_calls_have_the_form_that_the_template_takes() -> None:
    source, call_format = WITH_CALLS["mistral list"]
    template = ChatTemplate(source, "<s>", "</s>")
    text = call_format.written([("weather", '{"city": "Rome"}')])
    async with open_api(says(text), chat_template=template, max_model_len=8192) as api:
        (block,) = (await message_of(api, tools=[WEATHER]))["content"]
        assert len(block["id"]) == 9
    template.close()


async def test_tools_of_other_servers_are_left_out_with_a_warning(wide: Api) -> None:
    bash = {"type": "bash_20250124", "name": "bash"}
    whole = await message_of(wide, tools=[SEARCH, WEATHER, bash, SEARCH | {"type": "web_search_20990101"}])
    assert whole["warnings"] == [
        f"Tools of type `{kind}` are left out: this server does not have them." for kind in ("web_search", "bash")
    ]
    assert "web_search" not in wide.prompt_text()
    assert wide.sample("ignored_fields_total", field="tools[].web_search") == 1
    for choice in ({"type": "any"}, {"type": "tool", "name": "web_search"}):
        assert "`tool_choice` requires a function" in await refused(wide, tools=[SEARCH], tool_choice=choice)


async def test_a_tool_that_loads_later_is_offered_at_once_with_a_warning(wide: Api) -> None:
    later = WEATHER | {"defer_loading": True, "input_schema": {}, "cache_control": {"type": "ephemeral"}}
    whole = await message_of(wide, tools=[later, WEATHER | {"name": "other", "defer_loading": False}])
    assert set(whole["warnings"]) == {
        "`tools[].defer_loading` has no effect on this server.",
        "`tools[].cache_control` has no effect on this server.",
    }
    assert '"weather"' in wide.prompt_text()


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"tools": [SEARCH, {"name": "f"}]}, "`tools[1].input_schema` is missing"),
        ({"tools": [{"name": "f g", "input_schema": {}}]}, "`tools[0].name` is"),
        ({"tools": [WEATHER | {"inputs": 1}]}, "Unknown field `tools[0].inputs`."),
        ({"tools": [{"type": "frob", "name": "f"}]}, "`tools[0].type` is"),
        ({"tools": [SEARCH, WEATHER, WEATHER]}, "Two functions of `tools` have the same name."),
        ({"tools": [5]}, "`tools[0]` is 5; it must be an object."),
        ({"tools": [WEATHER], "tool_choice": {"type": "tool"}}, "`tool_choice.name` is required"),
        ({"tools": [WEATHER], "tool_choice": {"type": "any", "name": "weather"}}, "`tool_choice.name` is required"),
        ({"tools": [WEATHER], "tool_choice": "any"}, "`tool_choice` is"),
        ({"tools": [WEATHER], "tool_choice": {"type": "tool", "name": "x"}}, "`tool_choice` requires a function"),
        ({"tool_choice": {"type": "any"}}, "`tool_choice` requires a function"),
        (
            {
                "tools": [SEARCH, WEATHER | {"input_schema": {"type": "frob"}}],
                "tool_choice": {"type": "any"},
            },
            "`tools` cannot be used: Invalid type",
        ),
    ],
)
async def test_a_wrong_tool_is_400_and_named(wide: Api, fields: Body, says: str) -> None:
    assert says in await refused(wide, **fields)
    assert wide.engine.submitted == []


async def test_strictness_is_that_of_functions(wide: Api) -> None:
    whole = await message_of(wide, tools=[WEATHER | {"strict": True}])
    assert whole["warnings"] == [
        "`strict` of functions has no effect while `tool_choice` is auto; required calls are strict."
    ]
    assert "warnings" not in await message_of(wide, tools=[WEATHER | {"strict": True}], tool_choice={"type": "any"})
