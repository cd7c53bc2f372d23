"""Thoughts of /v1/messages: blocks with a signature, switched and limited by `thinking`, and sent back."""

from collections.abc import AsyncIterator

import pytest

from caravan.server.sandbox.chat_template import ChatTemplate
from tests.server.openai.api import Api, Body, open_api
from tests.support.fakes import says
from tests.support.message_events import HI, gathered, message_events, message_of, shown
from tests.support.thinking import EFFORT, QWEN_3

SAID = "<think>\nHm.\nOr not?\n</think>\n\nYes."
THOUGHT, CONTENT = "Hm.\nOr not?", "Yes."


@pytest.fixture
async def thinker() -> AsyncIterator[Api]:
    """A model that opens its thoughts itself."""
    template = ChatTemplate(QWEN_3, "<s>", "</s>")
    async with open_api(says(SAID), chat_template=template) as api:
        yield api
    template.close()


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"thinking": {"type": "adaptive"}},
        {"thinking": {"type": "enabled"}},
        {"thinking": {"type": "between_tools"}},
    ],
)
async def test_a_thought_is_a_block_before_the_text(thinker: Api, fields: Body) -> None:
    whole = await message_of(thinker, **fields)
    assert [(block["type"], block.get("thinking", block.get("text"))) for block in whole["content"]] == [
        ("thinking", THOUGHT),
        ("text", CONTENT),
    ]
    assert shown(gathered(await message_events(thinker, **fields))) == shown(whole)
    assert "warnings" not in whole
    assert whole["usage"]["output_tokens_details"] == {"thinking_tokens": len(SAID) - len(CONTENT)}


async def test_a_message_can_be_sent_back_with_and_without_the_text_of_its_thought(thinker: Api) -> None:
    content = (await message_of(thinker))["content"]
    hidden = [content[0] | {"thinking": ""}, content[1]]
    for back in (content, hidden):
        whole = await message_of(thinker, messages=[*HI, {"role": "assistant", "content": back}, *HI])
        assert f"<think>\n{THOUGHT}\n</think>\n\n{CONTENT}<|im_end|>" in thinker.prompt_text()
        assert "warnings" not in whole


async def test_thinking_can_be_switched_off(thinker: Api) -> None:
    whole = await message_of(thinker, thinking={"type": "disabled"}, output_config={"effort": "high"})
    assert thinker.prompt_text().endswith("<think>\n\n</think>\n\n")
    assert shown(whole) == [{"type": "text", "text": SAID}]


async def test_a_budget_limits_the_thought(thinker: Api) -> None:
    await message_of(thinker, thinking={"type": "enabled", "budget_tokens": 5})
    await thinker.chat(thinking_token_budget=5)
    first, second = (request.thought for request in thinker.engine.requests)
    assert first == second
    assert first is not None
    assert first.max_tokens == 5


async def test_a_message_cut_inside_its_thought_has_no_text(thinker: Api) -> None:
    whole = await message_of(thinker, max_tokens=12)
    assert [block["type"] for block in whole["content"]] == ["thinking"]
    assert whole["stop_reason"] == "max_tokens"
    assert shown(gathered(await message_events(thinker, max_tokens=12))) == shown(whole)


async def test_an_effort_reaches_the_template() -> None:
    template = ChatTemplate(EFFORT, "<s>", "</s>")
    async with open_api(says("Yes."), chat_template=template) as api:
        assert "warnings" not in await message_of(api, output_config={"effort": "high"})
        assert "Reasoning: high<" in api.prompt_text()
        await message_of(api, chat_template_kwargs={"reasoning_effort": "max"})
        assert "Reasoning: max<" in api.prompt_text()
    template.close()


async def test_what_a_template_does_not_read_is_a_warning(api: Api) -> None:
    thought: Body = {
        "role": "assistant",
        "content": [{"type": "thinking", "thinking": "a"}, {"type": "text", "text": "b"}],
    }
    whole = await message_of(
        api,
        messages=[*HI, thought, *HI],
        thinking={"type": "enabled", "budget_tokens": 2000},
        output_config={"effort": "low"},
        chat_template_kwargs={"tone": "kind"},
    )
    assert set(whole["warnings"]) == {
        "Blocks of type `thinking` have no effect with the chat template of this model.",
        "`output_config.effort` has no effect with the chat template of this model.",
        "`thinking` has no effect with the chat template of this model.",
        "`thinking.budget_tokens` has no effect with the chat template of this model.",
        "`chat_template_kwargs.tone` has no effect with the chat template of this model.",
    }
    assert "warnings" not in await message_of(api, thinking={"type": "disabled"})
