"""Sessions of Codex over /v1/responses with a scripted model: several turns in each shape of its requests."""

import itertools
import json
import re
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from caravan.server.openai.protocol.custom_input import arguments_of_input
from caravan.server.openai.tool_calls.call_format import HERMES
from caravan.server.sandbox.chat_template import ChatTemplate
from tests.conformance.codex import (
    APPLY_PATCH,
    PATCH_PATTERN,
    SHAPES,
    Body,
    a_message,
    opening,
    played_back,
    with_additional_tools,
    with_custom_tools,
)
from tests.server.openai.api import Api, answered, open_api
from tests.support.matching import accepts_text
from tests.support.responses_events import RESPONSES, events_of
from tests.support.scripted_model import answering
from tests.support.templates import QWEN

PATCH = "*** Begin Patch\n*** Add File: a.txt\n+x \\ y\n*** End Patch\n"
CALLS = {
    "unknown model": ("exec_command", json.dumps({"cmd": "cat a.txt"})),
    "custom tools": ("apply_patch", arguments_of_input(PATCH)),
    "additional tools": ("more__wait_agent", json.dumps({"id": "7"})),
}
ITEMS: dict[str, Body] = {
    "unknown model": {"type": "function_call", "name": "exec_command", "arguments": '{"cmd": "cat a.txt"}'},
    "custom tools": {"type": "custom_tool_call", "name": "apply_patch", "input": PATCH},
    "additional tools": {
        "type": "function_call",
        "name": "wait_agent",
        "namespace": "more",
        "arguments": '{"id": "7"}',
    },
}
THOUGHT = "<think>First I look.</think>"


@pytest.fixture(scope="module")
def qwen() -> Iterator[ChatTemplate]:
    template = ChatTemplate(QWEN, "<s>", "</s>")
    yield template
    template.close()


@pytest.fixture
async def agent(qwen: ChatTemplate, shape: str) -> AsyncIterator[Api]:
    answers = {
        "Do it.": f"{THOUGHT}\n\nNow. {HERMES.written([CALLS[shape]])}",
        "the first result": "It is done.",
        "Once more.": HERMES.written([CALLS[shape]]),
        "the second result": "It is done again.",
    }
    async with open_api(answering(answers), chat_template=qwen, max_model_len=32_768) as api:
        yield api


async def turn(api: Api, body: Body) -> list[Body]:
    """Return the items of a streamed answer, after comparing them with those of the answer that is not streamed."""
    events = await events_of(api, **body)
    assert events[-1]["type"] == "response.completed"
    done: list[Body] = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert done == events[-1]["response"]["output"]
    assert set(events[-1]["response"]["usage"]) >= {"input_tokens", "output_tokens", "total_tokens"}
    whole = answered(await api.http.post(RESPONSES, json={"model": "fake"} | body | {"stream": False}))
    assert [without_ids(item) for item in whole["output"]] == [without_ids(item) for item in done]
    assert joined_deltas(events) == [shown(item) for item in done]
    return done


def without_ids(item: Body) -> Body:
    return {name: value for name, value in item.items() if name not in ("id", "call_id")}


def shown(item: Body) -> str:
    for name in ("arguments", "input"):
        if name in item:
            return str(item[name])
    return "".join(part["text"] for part in item["content"])


def joined_deltas(events: list[Body]) -> list[str]:
    """Return the text of each item, from its deltas."""
    texts: dict[int, str] = {}
    for event in events:
        if event["type"] == "response.output_item.added":
            texts[event["output_index"]] = ""
        elif event["type"].endswith(".delta"):
            texts[event["output_index"]] += event["delta"]
    return [texts[index] for index in range(len(texts))]


@pytest.mark.parametrize("shape", SHAPES)
async def test_a_session_of_four_requests_goes_on_from_its_own_answers(agent: Api, shape: str) -> None:
    body_of, expected = SHAPES[shape], ITEMS[shape]
    items = opening("Do it.")
    first = await turn(agent, body_of(items))
    assert [item["type"] for item in first] == ["reasoning", "message", expected["type"]]
    assert shown(first[0]) == "First I look."
    assert first[0]["encrypted_content"]
    assert first[2].items() >= expected.items()
    items += played_back(first, "the first result")
    second = await turn(agent, body_of(items))
    assert [shown(item) for item in second] == ["It is done."]
    items += [*second, a_message("user", "Once more.")]
    third = await turn(agent, body_of(items))
    assert [item["type"] for item in third] == [expected["type"]]
    items += played_back(third, "the second result")
    assert [shown(item) for item in await turn(agent, body_of(items))] == ["It is done again."]
    prompts = [agent.prompt_text(index) for index in (0, 2, 4, 6)]
    assert THOUGHT in prompts[1]
    name, arguments = CALLS[shape]
    called = prompts[3][prompts[3].index("the first result") :]
    assert f'{{"name": "{name}", "arguments": {arguments}}}' in called
    for before, after in itertools.pairwise(prompts):  # the prefix cache finds the earlier prompt
        assert after.startswith(before.removesuffix("<|im_start|>assistant\n"))


@pytest.mark.parametrize("shape", ["custom tools"])
async def test_thoughts_are_read_from_their_text_or_their_encoded_form(agent: Api, shape: str) -> None:
    first = await turn(agent, SHAPES[shape](opening("Do it.")))
    prompts = []
    encoded = {"summary": [], "content": None, "encrypted_content": first[0]["encrypted_content"]}
    summary = {"summary": [{"type": "summary_text", "text": "First I look."}], "encrypted_content": "gAAAA"}
    for thought in ({}, encoded, summary | {"content": []}):
        items = played_back([{**first[0], **thought}, *first[1:]], "the first result")
        await turn(agent, SHAPES[shape]([*opening("Do it."), *items]))
        prompts.append(agent.prompt_text())
    assert prompts[0].count(THOUGHT) == 1
    assert prompts[1:] == prompts[:1] * 2


@pytest.mark.parametrize("shape", ["custom tools"])
async def test_calls_that_are_not_required_keep_to_the_grammar_of_a_custom_tool(agent: Api, shape: str) -> None:
    for body in (with_custom_tools(opening("Do it.")), with_additional_tools(opening("Do it."))):
        await turn(agent, body)
    grammar = agent.engine.grammars[0]
    assert agent.engine.grammars[2] == ""  # no tool has a format
    for text, is_allowed in (
        ("It is done.", True),
        (f"{THOUGHT}\n\nNow. {HERMES.written([CALLS[shape]])}", True),
        (HERMES.written([("apply_patch", arguments_of_input("*** Begin Patch\n*** End Patch"))]), False),
        (HERMES.written([("exec_command", '{"anything": [1]}')]), True),
        (HERMES.written([("web_search", "{}")]), False),
    ):
        assert accepts_text(grammar, text) == is_allowed, text
    assert re.fullmatch(PATCH_PATTERN, PATCH)


@pytest.mark.parametrize("shape", ["custom tools"])
async def test_a_custom_tool_beside_a_schema_keeps_both(agent: Api, shape: str) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    text = {"verbosity": "low", "format": {"type": "json_schema", "name": "n", "schema": schema, "strict": True}}
    await turn(agent, with_custom_tools(opening("Do it.")) | {"text": text})
    grammar = agent.engine.grammars[0]
    assert accepts_text(grammar, '{"n": 5}')
    assert accepts_text(grammar, HERMES.written([CALLS[shape]]))
    for other in ("It is done.", HERMES.written([("apply_patch", arguments_of_input("x"))])):
        assert not accepts_text(grammar, other)


async def test_a_required_custom_tool_has_the_grammar_and_no_other_text(qwen: ChatTemplate) -> None:
    async with open_api(chat_template=qwen, max_model_len=32_768) as api:
        choice = {"type": "custom", "name": "apply_patch"}
        body = with_custom_tools(opening("Do it.")) | {"tool_choice": choice, "stream": False, "model": "fake"}
        await api.http.post(RESPONSES, json=body)
        (grammar,) = api.engine.grammars
        assert accepts_text(grammar, HERMES.written([CALLS["custom tools"]]))
        for other in ("Hello", HERMES.written([("apply_patch", arguments_of_input("x"))])):
            assert not accepts_text(grammar, other)
        await api.http.post(RESPONSES, json=body | {"tool_choice": "none"})
        assert api.engine.grammars[1] == ""


CUSTOM: Body = {"type": "custom", "name": "edit"}


def with_format(syntax: str, definition: str) -> Body:
    return {**CUSTOM, "format": {"type": "grammar", "syntax": syntax, "definition": definition}}


@pytest.mark.parametrize(
    ("syntax", "definition", "reason"),
    [
        ("lark", 'start: %json {"type": "object"}', "it has"),
        ("lark", 'start: e\ne: /.+/ | "(" e ")"', "refer to themselves"),
        ("regex", r"(?x) a b", "the flag `x`"),
    ],
)
async def test_a_format_that_cannot_be_enforced_is_a_warning(
    chat_ml: ChatTemplate, syntax: str, definition: str, reason: str
) -> None:
    async with open_api(chat_template=chat_ml, max_model_len=8192) as api:
        body = {"model": "fake", "input": "hi", "tools": [with_format(syntax, definition)]}
        whole = answered(await api.http.post(RESPONSES, json=body))
        (warning,) = whole["warnings"]
        assert warning.startswith("`format` of a custom tool is shown to the model, but not enforced (`edit`:")
        assert reason in warning
        assert api.engine.grammars == [""]
        assert api.sample("ignored_fields_total", field="tools[].format") == 1


@pytest.mark.parametrize(
    ("tool", "fields"),
    [
        (with_format("lark", "start: ("), {}),
        (with_format("lark", "no grammar"), {}),
        (with_format("lark", 'begin: "a"'), {}),
        (with_format("regex", "("), {}),
        (with_format("regex", "a"), {"min_tokens": 3}),
    ],
)
async def test_a_format_that_is_not_valid_is_400(chat_ml: ChatTemplate, tool: Body, fields: dict[str, Any]) -> None:
    async with open_api(chat_template=chat_ml, max_model_len=8192) as api:
        body = {"model": "fake", "input": "hi", "tools": [tool], **fields}
        refused = await api.http.post(RESPONSES, json=body)
        assert refused.status_code == 400, refused.text
        assert refused.json()["error"]["param"] == ("min_tokens" if fields else "tools")
        assert api.engine.submitted == []
        assert (await api.http.post(RESPONSES, json=body | {"tool_choice": "none"})).status_code == 200


async def test_two_custom_tools_have_rules_of_their_own(chat_ml: ChatTemplate) -> None:
    tools = [
        APPLY_PATCH,
        with_format("lark", 'start: a\na: "x\\n"'),
        {**with_format("regex", "[0-9]+"), "name": "dial"},
    ]
    async with open_api(chat_template=chat_ml, max_model_len=8192) as api:
        await api.http.post(RESPONSES, json={"model": "fake", "input": "hi", "tools": tools})
        (grammar,) = api.engine.grammars
    for name, text, is_allowed in (
        ("apply_patch", PATCH, True),
        ("edit", "x\n", True),
        ("edit", "12", False),
        ("dial", "12", True),
        ("dial", "x\n", False),
    ):
        assert accepts_text(grammar, HERMES.written([(name, arguments_of_input(text))])) == is_allowed
