"""A template sees what the client sent, in the form that it reads."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import product
from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from caravan.server.sandbox.chat_template import ChatTemplate
from tests.server.openai.api import CHAT, CHAT_ML, Api, Body, a_chat, answered, open_api
from tests.support import templates
from tests.support.tools import WEATHER

ARGUMENTS: Body = {"city": "Paris", "days": [1, 2.5, None, True], "é": {"a": "b"}}
SYSTEM = {"role": "system", "content": "Be kind."}
PARTS = [{"type": "text", "text": "How is "}, {"type": "text", "text": "the weather?"}]


@asynccontextmanager
async def opened(source: str) -> AsyncIterator[Api]:
    template = ChatTemplate(source, "<s>", "</s>")
    async with open_api(chat_template=template, max_model_len=16384) as api:
        yield api
    template.close()


async def prompt_of(api: Api, messages: list[Body], **fields: Any) -> str:
    body = answered(await api.http.post("/apply-template", json={"messages": messages} | fields))
    return str(body["prompt"])


def conversation(call_id: str, arguments: Any, content: str | None) -> list[Body]:
    call = {"id": call_id, "type": "function", "function": {"name": "weather", "arguments": arguments}}
    return [
        {"role": "user", "content": "  How is the weather? <b> é \u2028"},
        {"role": "assistant", "content": content, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": call_id, "name": "weather", "content": '{"sky": "grey"}'},
        {"role": "assistant", "content": " It is grey.\n"},
        {"role": "user", "content": "Thanks", "name": "ann"},
    ]


def rendered_by_transformers(source: str, messages: list[Body], tools: list[Body] | None) -> str:
    rendered: Any = render_jinja_template(
        conversations=[messages],
        tools=tools,  # type: ignore[arg-type]  # functions are taken, too
        chat_template=source,
        add_generation_prompt=True,
        bos_token="<s>",
        eos_token="</s>",
    )
    return str(rendered[0][0])


@pytest.mark.slow
@pytest.mark.parametrize("tools", [None, [WEATHER]], ids=["no tools", "tools"])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        *product(["QWEN", "MISTRAL_LIST", "MISTRAL_ARGS", "LLAMA_3"], [None, "", "Let me see."]),
        *product(["DEEPSEEK"], [None, "Let me see."]),  # beside "" it drops calls, which are kept here
    ],
)
async def test_a_prompt_is_that_of_transformers(name: str, content: str | None, tools: list[Body] | None) -> None:
    source = getattr(templates, name)
    arguments = json.dumps(ARGUMENTS) if name == "DEEPSEEK" else ARGUMENTS
    expected = rendered_by_transformers(source, [SYSTEM, *conversation("a1B2c3D4e", arguments, content)], tools)
    async with opened(source) as api:
        sent = conversation("a1B2c3D4e", json.dumps(ARGUMENTS), content)
        fields = {} if tools is None else {"tools": tools}
        assert await prompt_of(api, [SYSTEM, *sent], **fields) == expected


@pytest.mark.parametrize(
    "content", ["How is the weather?", PARTS[:1], PARTS, []], ids=["text", "part", "parts", "none"]
)
@pytest.mark.parametrize("name", ["LLAMA_GUARD", "BOTH_FORMS"])
async def test_parts_reach_templates_that_read_them(name: str, content: Any) -> None:
    source = getattr(templates, name)
    as_read = [{"type": "text", "text": content}] if isinstance(content, str) and name == "LLAMA_GUARD" else content
    answer: Body = {"role": "assistant", "content": PARTS}
    messages = [{"role": "user", "content": as_read}, answer, {"role": "user", "content": as_read}]
    expected = rendered_by_transformers(source, messages, None)
    async with opened(source) as api:
        sent = {"role": "user", "content": content}
        assert await prompt_of(api, [sent, answer, sent]) == expected


async def test_a_users_text_reaches_a_template_that_loops_over_parts() -> None:
    async with opened(templates.LLAMA_GUARD) as api:
        for content in ("How is the weather?", [*PARTS[:1], {"type": "text", "text": "the weather?"}]):
            await api.chat(messages=[{"role": "user", "content": content}])
            assert "the weather?" in api.prompt_text()


async def test_parts_are_joined_for_a_template_that_shows_the_first_one_alone() -> None:
    async with opened(templates.ONE_PART) as api:
        for content in ("How is the weather?", PARTS):
            assert await prompt_of(api, [{"role": "user", "content": content}]) == "user: How is the weather?\n"


async def test_the_last_message_can_be_continued_in_parts() -> None:
    source = "{% for m in messages %}[{% for p in m.content %}{{ p.text }}{% endfor %}]{% endfor %}"
    async with opened(source) as api:
        for content in ("1, 2,", [{"type": "text", "text": "1, "}, {"type": "text", "text": "2,"}]):
            messages = [*a_chat("Count.")["messages"], {"role": "assistant", "content": content}]
            assert await prompt_of(api, messages, continue_final_message=True) == "[Count.][1, 2,"


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning", "reasoning_details"])
async def test_earlier_reasoning_goes_where_the_template_reads_it(field: str) -> None:
    details = [{"type": "reasoning.text", "text": "Hm."}, {"type": "reasoning.encrypted", "data": "x"}]
    answer = {"role": "assistant", "content": "4", field: details if field == "reasoning_details" else "Hm."}
    messages = [*a_chat("2+2?")["messages"], answer, *a_chat("Sure?")["messages"]]
    async with opened(templates.QWEN) as api:
        assert "warnings" not in await api.chat(messages=messages)
        assert "assistant\n<think>Hm.</think>4<|im_end|>" in api.prompt_text()
    async with opened(CHAT_ML) as api:
        body = await api.chat(messages=messages)
        assert body["warnings"] == [f"`messages[].{field}` has no effect with the chat template of this model."]


async def test_a_refusal_is_text_of_the_assistant(api: Api) -> None:
    refusals: list[Body] = [
        {"content": None, "refusal": "I cannot."},
        {"refusal": "I cannot."},
        {"content": [{"type": "refusal", "refusal": "I cannot."}]},
        {"content": [{"type": "text", "text": "I "}], "refusal": "cannot."},
    ]
    for fields in refusals:
        messages = [*a_chat("hi")["messages"], {"role": "assistant"} | fields, *a_chat("Why?")["messages"]]
        await api.chat(messages=messages)
        assert "assistant\nI cannot.<|im_end|>" in api.prompt_text()


async def test_null_content_of_an_assistant_or_a_tool_is_empty(api: Api) -> None:
    messages = [
        *a_chat("hi")["messages"],
        {"role": "assistant", "content": None},
        *a_chat("Well?")["messages"],
        {"role": "tool", "tool_call_id": "1", "content": None},
    ]
    await api.chat(messages=messages)
    assert "assistant\n<|im_end|>" in api.prompt_text()
    assert "None" not in api.prompt_text()
    for role in ("user", "system"):
        response = await api.http.post(CHAT, json=a_chat() | {"messages": [{"role": role, "content": None}]})
        assert response.json()["error"]["param"] == "messages[0].content"


async def test_null_beside_calls_is_not_written_as_a_word() -> None:
    source = "{% for m in messages %}[{{ m.content }}{{ m.tool_calls | default([]) | tojson }}]{% endfor %}{# tools #}"
    async with opened(source) as api:
        assert "None" not in await prompt_of(api, conversation("1", "{}", None))


async def test_calls_are_kept_where_a_template_drops_them_beside_empty_content() -> None:
    async with opened(templates.DEEPSEEK) as api:
        assert "<call>weather" in await prompt_of(api, conversation("1", "{}", ""))


async def test_what_is_to_be_cached_is_accepted_and_named_in_a_warning(api: Api) -> None:
    mark = {"cache_control": {"type": "ephemeral"}}
    for message in (
        {"role": "user", "content": [{"type": "text", "text": "hi"} | mark]},
        {"role": "user", "content": "hi"} | mark,
    ):
        body = await api.chat(messages=[message])
        assert body["warnings"] == ["`messages[].cache_control` has no effect on this server."]
        assert "user\nhi<|im_end|>" in api.prompt_text()


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "data:,"}},
        {"type": "input_audio", "input_audio": {}},
        {"type": "text"},
        {"type": "text", "text": 1},
        {"type": "text", "text": "a", "other": 1},
        {"type": ["text"], "text": "a"},
        {"text": "a"},
        "text",
    ],
)
async def test_other_parts_are_refused(api: Api, part: Any) -> None:
    response = await api.http.post(CHAT, json=a_chat() | {"messages": [{"role": "user", "content": [part]}]})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "messages[0].content"


async def test_the_developer_keeps_its_role_where_the_template_knows_it() -> None:
    messages = [{"role": "developer", "content": "Be kind."}, *a_chat()["messages"]]
    source = "{% for m in messages %}{{ '!' if m.role == 'developer' else m.role }}{{ m.content }};{% endfor %}"
    async with opened(source) as api:
        assert await prompt_of(api, messages) == "!Be kind.;userhi;"
    async with opened(CHAT_ML) as api:
        assert (await prompt_of(api, messages)).startswith("<|im_start|>system\nBe kind.")


async def test_several_calls_are_turns_of_their_own_where_a_template_takes_one() -> None:
    calls = [
        {"id": call_id, "type": "function", "function": {"name": name, "arguments": "{}"}}
        for call_id, name in (("1", "weather"), ("2", "time"))
    ]
    results = [
        {"role": "tool", "tool_call_id": call_id, "content": text} for call_id, text in (("2", "noon"), ("1", "rain"))
    ]
    messages = [*a_chat()["messages"], {"role": "assistant", "content": None, "tool_calls": calls}, *results]
    async with opened(templates.LLAMA_3) as api:
        prompt = await prompt_of(api, messages)
        places = [prompt.index(word) for word in ('{"name": "weather"', "rain", '{"name": "time"', "noon")]
        assert places == sorted(places)


async def test_results_of_tools_and_what_follows_are_one_turn_where_a_template_knows_no_tools() -> None:
    calls = [{"id": i, "type": "function", "function": {"name": "weather", "arguments": "{}"}} for i in ("1", "2")]
    messages = [
        *a_chat("hi")["messages"],
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "tool", "tool_call_id": "1", "content": [{"type": "text", "text": "rain"}]},
        {"role": "tool", "tool_call_id": "2", "content": "sun"},
        *a_chat("And now?")["messages"],
    ]
    async with opened(templates.ALTERNATING) as api:
        prompt = await prompt_of(api, messages)
        assert (
            "user\n<tool_response>\nrain\n</tool_response>\n<tool_response>\nsun\n</tool_response>\nAnd now?<|im_end|>"
            in prompt
        )


async def test_results_of_calls_with_the_same_id_are_written_once_each() -> None:
    call = {"id": "", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    results = [{"role": "tool", "tool_call_id": "", "content": text} for text in ("rain", "snow", "hail")]
    messages = [*a_chat()["messages"], {"role": "assistant", "content": None, "tool_calls": [call, call]}, *results]
    async with opened(templates.LLAMA_3) as api:
        prompt = await prompt_of(api, messages)
        assert [prompt.count(text) for text in ("rain", "snow", "hail")] == [1, 1, 1]
        first, second = prompt.index('{"name": "weather"'), prompt.rindex('{"name": "weather"')
        assert first < prompt.index("rain") < second < prompt.index("snow") < prompt.index("hail")


@pytest.mark.parametrize(
    ("name", "lost"),
    [
        *(("QWEN", None), ("MISTRAL_ARGS", None), ("ALTERNATING", None)),
        *(("MISTRAL_LIST", "content"), ("LLAMA_3", "content"), ("DEEPSEEK", "tool_calls")),
    ],
)
async def test_text_or_calls_that_a_template_leaves_out_beside_each_other_are_a_warning(
    name: str, lost: str | None
) -> None:
    async with opened(getattr(templates, name)) as api:
        for content in ("Let me see.", None):
            messages = conversation("a1B2c3D4e", "{}", content)
            warnings = (await api.chat(messages=messages)).get("warnings", [])
            found = [warning for warning in warnings if "is left out by the chat template" in warning]
            assert found == [one for one in found if lost is not None and one.startswith(f"`messages[].{lost}` beside")]
            assert bool(found) == (lost is not None and content is not None)
