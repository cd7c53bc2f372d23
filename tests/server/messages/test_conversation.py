"""Blocks become the messages of a chat, each where it stands, so that prompts only grow."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import pytest

from caravan.server.http.errors import ApiError
from caravan.server.messages.conversation import Conversation
from caravan.server.messages.protocol.request import CountTokensRequest
from caravan.server.openai.protocol.encoded_thought import encoded_thought
from caravan.server.sandbox.chat_template import ChatTemplate
from caravan.server.sandbox.template_shape import ContentShape, TemplateShape
from tests.server.openai.api import Api, Body, open_api
from tests.support import templates
from tests.support.message_events import HI, WEATHER, message_of, refused

BILLING = "x-anthropic-billing-header: cc_version=2.1.332.0b8; cc_entrypoint=sdk-cli;"
FLEXIBLE = TemplateShape(takes_late_systems=True)
STRICT = TemplateShape(takes_late_systems=False, takes_text_after_results=False)
USE: Body = {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Rome"}}
RESULT: Body = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "Sunny", "is_error": False}


def read(messages: list[Body], shape: TemplateShape = FLEXIBLE, **fields: Any) -> Conversation:
    body = CountTokensRequest.model_validate({"model": "m", "messages": messages} | fields)
    return Conversation(body, shape)


def turns(conversation: Conversation) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in conversation.messages]


def text(value: str) -> Body:
    return {"type": "text", "text": value}


def test_texts_are_the_same_as_a_string_and_as_blocks() -> None:
    for content in ("hi", [text("hi")]):
        assert turns(read([{"role": "user", "content": content}], system=content)) == [("system", "hi"), ("user", "hi")]
    two = [text("a"), text("b")]
    assert turns(read([{"role": "user", "content": two}], system=two)) == [("system", "a\nb"), ("user", "a\nb")]


def test_results_and_texts_of_a_user_keep_their_order() -> None:
    content = [
        text("before"),
        RESULT,
        RESULT | {"tool_use_id": "toolu_2", "content": [text("a"), text("b")]},
        text("c"),
    ]
    conversation = read([*HI, {"role": "assistant", "content": [USE]}, {"role": "user", "content": content}])
    assert turns(conversation) == [
        ("user", "hi"),
        ("assistant", ""),
        ("user", "before"),
        ("tool", "Sunny"),
        ("tool", "a\nb"),
        ("user", "c"),
    ]
    assert [message.get("tool_call_id") for message in conversation.messages[3:5]] == ["toolu_1", "toolu_2"]
    assert conversation.places == ["messages[0]", "messages[1]", *["messages[2]"] * 4]


def test_a_text_after_results_is_part_of_the_last_one_where_the_template_takes_none() -> None:
    messages = [*HI, {"role": "assistant", "content": [USE]}, {"role": "user", "content": [RESULT, text("And?")]}]
    assert turns(read(messages, STRICT))[-1] == ("tool", "Sunny\nAnd?")


def test_a_failed_call_says_so() -> None:
    failed = RESULT | {"is_error": True, "content": "no network"}
    assert turns(read([{"role": "user", "content": [failed]}])) == [("tool", "Error: no network")]


def test_a_result_without_content_is_empty() -> None:
    assert turns(read([{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a"}]}])) == [("tool", "")]


def test_the_blocks_of_an_assistant_are_one_message() -> None:
    thought = {"type": "thinking", "thinking": "Hm.", "signature": "abc"}
    content = [thought, text("Let me see."), USE, text(" Then."), USE | {"id": "toolu_2", "input": {}}]
    (_, message) = read([*HI, {"role": "assistant", "content": content}]).messages
    assert message["content"] == "Let me see. Then."
    assert message["reasoning_content"] == "Hm."
    assert message["tool_calls"] == [
        {"id": "toolu_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}},
        {"id": "toolu_2", "type": "function", "function": {"name": "weather", "arguments": "{}"}},
    ]


def test_consecutive_messages_of_a_role_are_one_turn() -> None:
    said = [("user", "a"), ("user", "b"), ("assistant", "c"), ("assistant", "d"), ("user", "e")]
    conversation = read([{"role": role, "content": content} for role, content in said])
    assert turns(conversation) == [("user", "a\nb"), ("assistant", "cd"), ("user", "e")]


@pytest.mark.parametrize(
    "block",
    [
        {"type": "thinking", "thinking": "", "signature": encoded_thought("Hm.")},
        {"type": "redacted_thinking", "data": encoded_thought("Hm.")},
        {"type": "thinking", "thinking": "Hm."},
    ],
)
def test_a_thought_comes_back_as_text_or_in_its_opaque_form(block: Body) -> None:
    conversation = read([*HI, {"role": "assistant", "content": [block, text("Yes.")]}])
    assert conversation.messages[1]["reasoning_content"] == "Hm."
    assert conversation.ignored == {}


@pytest.mark.parametrize(
    "block", [{"type": "thinking", "thinking": "", "signature": "EqQB"}, {"type": "redacted_thinking", "data": "x"}]
)
def test_a_thought_of_another_server_without_a_text_is_a_warning(block: Body) -> None:
    conversation = read([*HI, {"role": "assistant", "content": [block, text("Yes.")]}])
    assert "reasoning_content" not in conversation.messages[1]
    assert list(conversation.ignored) == ["messages[].content[].thinking"]


def test_a_late_system_message_stays_in_its_place_where_the_template_takes_it() -> None:
    late: list[Body] = [*HI, {"role": "system", "content": "It rains."}]
    assert turns(read(late, system="Be kind.")) == [("system", "Be kind."), ("user", "hi"), ("system", "It rains.")]


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (HI, [], [("user", "hi\nLate.")]),
        (HI, HI, [("user", "hi\nLate.\nhi")]),
        (
            [*HI, {"role": "assistant", "content": "a"}],
            HI,
            [("user", "hi"), ("assistant", "a"), ("user", "Late.\nhi")],
        ),
        (
            [*HI, {"role": "assistant", "content": [USE]}, {"role": "user", "content": [RESULT]}],
            [{"role": "assistant", "content": "a"}],
            [("user", "hi"), ("assistant", ""), ("tool", "Sunny\nLate."), ("assistant", "a")],
        ),
    ],
)
def test_a_late_system_message_is_text_of_the_turn_beside_it_where_the_template_takes_none(
    before: list[Body], after: list[Body], expected: list[tuple[str, str]]
) -> None:
    assert turns(read([*before, {"role": "system", "content": "Late."}, *after], STRICT)) == expected


def test_leading_system_messages_join_the_system_prompt() -> None:
    messages = [{"role": "system", "content": "b"}, *HI]
    for shape in (FLEXIBLE, STRICT):
        assert turns(read(messages, shape, system="a")) == [("system", "a\nb"), ("user", "hi")]
        assert turns(read(messages, shape)) == [("system", "b"), ("user", "hi")]


def test_a_system_prompt_is_text_of_the_user_where_the_template_takes_none() -> None:
    shape = TemplateShape(roles={"user": ContentShape()})
    assert turns(read(HI, shape, system="Be kind.")) == [("user", "Be kind.\nhi")]
    shape = TemplateShape(roles={"user": ContentShape(), "system": ContentShape()})
    assert turns(read(HI, shape, system="Be kind.")) == [("system", "Be kind."), ("user", "hi")]


@pytest.mark.parametrize(
    ("system", "expected"),
    [
        ([text(BILLING), text("Be kind.")], "Be kind."),
        (f"{BILLING}\nBe kind.", "Be kind."),
        ([text(f"{BILLING}\nBe kind.")], "Be kind."),
        (f"Be kind.\n{BILLING}", f"Be kind.\n{BILLING}"),
    ],
)
def test_the_billing_line_is_left_out_of_system_prompts(system: Any, expected: str) -> None:
    conversation = read(HI, system=system)
    assert turns(conversation)[0] == ("system", expected)
    assert bool(conversation.ignored) == (BILLING not in expected)
    late = read([*HI, {"role": "system", "content": system}])
    assert turns(late)[1] == ("system", expected)


def test_a_system_prompt_of_the_billing_line_alone_is_none() -> None:
    assert turns(read(HI, system=[text(BILLING)])) == [("user", "hi")]
    assert turns(read([{"role": "user", "content": BILLING}])) == [("user", BILLING)]
    with pytest.raises(ApiError, match="no text for the model"):
        read([{"role": "system", "content": BILLING}])


def test_blocks_of_other_tools_are_left_out_with_a_warning_for_each_kind() -> None:
    blocks = [
        {"type": "server_tool_use", "id": "a", "name": "web_search", "input": {}},
        {"type": "tool_addition", "tool": {}},
    ]
    conversation = read([*HI, {"role": "assistant", "content": [*blocks, *blocks, text("Yes.")]}])
    assert turns(conversation)[1] == ("assistant", "Yes.")
    assert conversation.ignored == {
        f"messages[].content[].{kind}": f"Blocks of type `{kind}` are left out."
        for kind in ("server_tool_use", "tool_addition")
    }


def test_references_to_tools_are_the_names_of_the_tools() -> None:
    reference = {"type": "tool_reference", "tool_name": "weather"}
    found = RESULT | {"content": [text("Found:"), reference]}
    assert turns(read([{"role": "user", "content": [found]}])) == [("tool", "Found:\nweather")]


def test_references_outside_a_users_messages_are_a_warning() -> None:
    reference = {"type": "tool_reference", "tool_name": "weather"}
    conversation = read([*HI, {"role": "assistant", "content": [text("a"), reference]}])
    assert conversation.ignored == {
        "messages[].content[].tool_reference": "Blocks of type `tool_reference` are left out."
    }


@pytest.mark.parametrize("kind", ["image", "document", "search_result"])
@pytest.mark.parametrize("place", ["content[0]", "content[0].content[0]"])
async def test_an_image_is_refused(api: Api, kind: str, place: str) -> None:
    image = {"type": kind, "source": {"type": "base64", "media_type": "image/png", "data": "a"}}
    block = image if place == "content[0]" else RESULT | {"content": [image]}
    message = await refused(api, messages=[{"role": "user", "content": [block]}])
    assert message == f'`messages[0].{place}.type` is "{kind}"; it cannot be used: this server reads text only.'


@pytest.mark.parametrize(
    ("role", "block"),
    [
        ("user", USE),
        ("user", {"type": "thinking", "thinking": "a"}),
        ("system", {"type": "redacted_thinking", "data": "a"}),
        ("assistant", RESULT),
        ("system", RESULT),
    ],
)
async def test_a_block_of_another_role_is_refused(api: Api, role: str, block: Body) -> None:
    message = await refused(api, messages=[*HI, {"role": role, "content": [text("a"), block]}])
    assert message.startswith(f"`messages[1].content[1]` is of type {block['type']}, which only messages of the role")


@contextmanager
def opened(source: str) -> Iterator[ChatTemplate]:
    template = ChatTemplate(source, "<s>", "</s>")
    yield template
    template.close()


AGENT: list[Body] = [
    {"role": "user", "content": [text("<system-reminder>Read.</system-reminder>"), text("Weather?")]},
    {"role": "system", "content": "It is Tuesday."},
    {"role": "assistant", "content": [text("Let me see."), USE]},
    {"role": "user", "content": [RESULT, text("Quick!")]},
    {"role": "system", "content": "It is late."},
    {"role": "assistant", "content": "Sunny."},
    {"role": "user", "content": "And tomorrow?"},
    {"role": "assistant", "content": "Rain."},
]


# Llama's template of these tests describes tools in the last message of the user, so its prompts do not grow.
@pytest.mark.parametrize("name", [name for name in templates.WITH_CALLS if name != "llama"])
async def test_each_prompt_of_a_session_begins_with_the_prompt_before_it(name: str) -> None:
    with opened(templates.WITH_CALLS[name][0]) as template:
        async with open_api(chat_template=template, max_model_len=8192) as api:
            fields: Body = {"system": [text(BILLING), text("Be kind.")], "tools": [WEATHER]}
            ends = [index for index, turn in enumerate(AGENT) if turn["role"] == "assistant"]
            for end in [*ends, len(AGENT)]:
                await message_of(api, messages=[*AGENT[:end], *(HI if end == len(AGENT) else [])], **fields)
            prompts = [submitted[0] for submitted in api.engine.submitted]
    assert len(prompts) == 4
    for earlier, later in pairwise(prompts):
        differing = (i for i, (a, b) in enumerate(zip(earlier, later, strict=False)) if a != b)
        num_shared = next(differing, len(earlier))
        assert len(earlier) - num_shared <= len("<|im_start|>assistant\n"), num_shared  # where the answer begins


async def test_a_last_text_of_the_assistant_is_continued(api: Api) -> None:
    whole = await message_of(api, messages=[*HI, {"role": "assistant", "content": "Well, "}])
    assert api.prompt_text().endswith("<|im_start|>assistant\nWell, ")
    assert whole["content"] == [text("Hello!")]
    await message_of(api, messages=[*HI, {"role": "assistant", "content": [USE]}])
    assert api.prompt_text().endswith("<|im_start|>assistant\n")


async def test_an_error_of_the_template_names_the_messages(api: Api) -> None:
    with opened("{{ raise_exception('no such ' + messages[0].role) }}") as template:
        async with open_api(chat_template=template) as strict:
            message = await refused(strict)
    assert message == "The model's chat template refuses these messages: no such user"
    long = [*HI, {"role": "assistant", "content": [USE | {"id": "a" * 300}]}]
    assert "`messages[1].content[0].id` is" in await refused(api, messages=long)
