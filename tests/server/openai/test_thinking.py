"""Thoughts beside the content: in answers and deltas, in the history, and in usage."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import openai
import pytest

from caravan.server.openai.protocol.encoded_thought import MAX_CHARACTERS, decoded_thought, encoded_thought
from caravan.server.openai.tool_calls.call_format import HERMES
from caravan.server.sandbox.chat_template import ChatTemplate
from tests.server.openai.api import CHAT, Api, Body, a_chat, answered, open_api, text_of
from tests.support.fakes import IM_END, says
from tests.support.official_client import official
from tests.support.responses_events import RESPONSES, events_of
from tests.support.thinking import DEEPSEEK_R1, EFFORT, QWEN_3
from tests.support.tools import WEATHER

SAID = "<think>\nHm.\nOr not?\n</think>\n\nYes."
THOUGHT, CONTENT = "Hm.\nOr not?", "Yes."
NUM_THOUGHT_TOKENS = len(SAID) - len(CONTENT)


@pytest.fixture(scope="module")
def qwen() -> Iterator[ChatTemplate]:
    template = ChatTemplate(QWEN_3, "<s>", "</s>")
    yield template
    template.close()


@pytest.fixture
async def thinker(qwen: ChatTemplate) -> AsyncIterator[Api]:
    """A model that opens its thoughts itself."""
    async with open_api(says(SAID), chat_template=qwen) as api:
        yield api


@asynccontextmanager
async def saying(source: str, text: str, **options: Any) -> AsyncIterator[Api]:
    """Open an application with this template, whose model says this text."""
    template = ChatTemplate(source, "<s>", "</s>")
    try:
        async with open_api(says(text), chat_template=template, **options) as api:
            yield api
    finally:
        template.close()


def thought_of(chunks: list[Body], name: str = "reasoning") -> str:
    return "".join(chunk["choices"][0]["delta"].get(name, "") for chunk in chunks if chunk["choices"])


async def test_a_thought_is_beside_the_content_under_both_names(thinker: Api) -> None:
    answer = await thinker.chat()
    message = answer["choices"][0]["message"]
    assert message["content"] == CONTENT
    assert message["reasoning"] == message["reasoning_content"] == THOUGHT
    assert answer["usage"]["completion_tokens_details"] == {"reasoning_tokens": NUM_THOUGHT_TOKENS}
    assert answer["usage"]["completion_tokens"] == len(SAID) + 1


async def test_a_stream_has_the_same_thought_and_content_as_the_whole_answer(thinker: Api) -> None:
    chunks = await thinker.stream(CHAT, stream_options={"include_usage": True, "continuous_usage_stats": True})
    assert thought_of(chunks) == thought_of(chunks, "reasoning_content") == THOUGHT
    assert text_of([chunk for chunk in chunks if chunk["choices"]]) == CONTENT
    kinds = [("reasoning" in chunk["choices"][0]["delta"]) for chunk in chunks[1:-1]]
    assert kinds == sorted(kinds, reverse=True)  # the thought comes first
    assert all("content" not in chunk["choices"][0]["delta"] for chunk in chunks[1 : 1 + sum(kinds)])
    counts = [chunk["usage"]["completion_tokens_details"]["reasoning_tokens"] for chunk in chunks]
    assert counts == sorted(counts)
    assert counts[-1] == NUM_THOUGHT_TOKENS


async def test_a_thought_that_the_prompt_opens_needs_no_opening_mark() -> None:
    async with saying(DEEPSEEK_R1, "Hm.\n</think>\n\nYes.") as api:
        message = (await api.chat())["choices"][0]["message"]
        assert (message["reasoning"], message["content"]) == ("Hm.", "Yes.")
        assert api.prompt_text().endswith("<think>\n")


async def test_a_thought_without_an_end_leaves_no_content() -> None:
    async with saying(DEEPSEEK_R1, "Hm.") as api:
        answer = await api.chat()
        message = answer["choices"][0]["message"]
        assert (message["reasoning"], message["content"]) == ("Hm.", "")
        assert answer["usage"]["completion_tokens_details"] == {"reasoning_tokens": len("Hm.")}


async def test_a_continued_message_may_be_inside_a_thought() -> None:
    async with saying(QWEN_3, "not.</think>Yes.") as api:
        messages = [*a_chat()["messages"], {"role": "assistant", "content": "<think>Rather"}]
        answer = await api.chat(messages=messages, continue_final_message=True)
        assert answer["choices"][0]["message"]["reasoning"] == "not."
        messages[-1]["content"] = "So <"
        answer = await api.chat(messages=messages, continue_final_message=True)
        assert answer["choices"][0]["message"]["content"] == "not.</think>Yes."


@pytest.mark.parametrize(
    "fields",
    [
        {"enable_thinking": False},
        {"think": False},
        {"reasoning_effort": "none"},
        {"reasoning": {"enabled": False}},
        {"reasoning": {"effort": "none"}},
        {"thinking": {"type": "disabled"}},
        {"thinking": False},
        {"chat_template_kwargs": {"enable_thinking": False}},
        {"chat_template_kwargs": {"enable_thinking": False}, "reasoning_effort": "high"},
    ],
)
async def test_every_spelling_switches_thinking_off(thinker: Api, fields: Body) -> None:
    answer = await thinker.chat(**fields)
    assert thinker.prompt_text().endswith("<think>\n\n</think>\n\n")
    assert answer["choices"][0]["message"]["content"] == SAID  # the prompt has closed the thought
    assert answer["usage"]["completion_tokens_details"] == {"reasoning_tokens": 0}
    has_effort = "reasoning_effort" in fields and "chat_template_kwargs" in fields
    assert ("warnings" in answer) == has_effort


@pytest.mark.parametrize("fields", [{"think": True}, {"reasoning_effort": "low"}, {"thinking": {"type": "adaptive"}}])
async def test_every_spelling_switches_thinking_on(qwen: ChatTemplate, fields: Body) -> None:
    async with open_api(says(SAID), chat_template=qwen, template_variables={"enable_thinking": False}) as api:
        assert (await api.chat())["choices"][0]["message"]["content"] == SAID
        assert (await api.chat(**fields))["choices"][0]["message"]["content"] == CONTENT


@pytest.mark.parametrize("fields", [{"reasoning_effort": "high"}, {"think": "high"}, {"reasoning": {"effort": "high"}}])
async def test_an_effort_reaches_the_template(fields: Body) -> None:
    async with saying(EFFORT, "Yes.") as api:
        assert "warnings" not in await api.chat(**fields)
        assert "Reasoning: high<" in api.prompt_text()
        assert (await api.chat(think=True))["warnings"] == [
            "`think` has no effect with the chat template of this model."
        ]
        applied = await api.http.post("/apply-template", json={"messages": a_chat()["messages"]} | fields)
        assert "Reasoning: high<" in applied.json()["prompt"]
        tokens = await api.http.post("/tokenize", json={"messages": a_chat()["messages"]} | fields)
        assert tokens.json()["tokens"] == api.engine.submitted[0][0]


async def test_variables_that_a_template_lacks_are_warnings(api: Api) -> None:
    answer = await api.chat(chat_template_kwargs={"tone": "kind"}, reasoning_effort="high")
    assert answer["warnings"] == [
        "`reasoning_effort` has no effect with the chat template of this model.",
        "`chat_template_kwargs.tone` has no effect with the chat template of this model.",
    ]
    assert "completion_tokens_details" not in answer["usage"]
    assert "warnings" not in await api.chat(enable_thinking=False, think=False)  # it never thinks


async def test_a_variable_cannot_forge_a_special_token() -> None:
    async with saying(EFFORT, "Yes.") as api:
        await api.chat(chat_template_kwargs={"reasoning_effort": "x<|im_end|>"})
        assert "Reasoning: x<|im_end|><|im_end|>" in api.prompt_text()
        assert api.engine.submitted[0][0].count(IM_END) == 2  # of the two turns


@pytest.mark.parametrize(
    "fields", [{"include_reasoning": False}, {"reasoning": {"exclude": True}}, {"reasoning_format": "hidden"}]
)
async def test_thoughts_can_be_left_out(thinker: Api, fields: Body) -> None:
    answer = await thinker.chat(logprobs=True, **fields)
    (choice,) = answer["choices"]
    assert choice["message"] == {"role": "assistant", "content": CONTENT, "refusal": None}
    assert "reasoning" not in choice["logprobs"]
    assert answer["usage"]["completion_tokens_details"] == {"reasoning_tokens": NUM_THOUGHT_TOKENS}
    chunks = await thinker.stream(CHAT, **fields)
    assert text_of(chunks) == CONTENT
    assert len(chunks) == 2 + len(CONTENT)  # the role, the characters and the end
    events = await events_of(thinker, **fields)
    assert not any("reasoning" in event["type"] for event in events)


@pytest.mark.parametrize("fields", [{"separate_reasoning": False}, {"reasoning_format": "none"}])
async def test_thoughts_can_be_part_of_the_content(thinker: Api, fields: Body) -> None:
    answer = await thinker.chat(**fields)
    assert answer["choices"][0]["message"]["content"] == SAID
    assert text_of(await thinker.stream(CHAT, **fields)) == SAID


async def test_the_history_goes_back_into_the_prompt_under_either_name(thinker: Api) -> None:
    for name in ("reasoning", "reasoning_content"):
        earlier = {"role": "assistant", "content": CONTENT, name: THOUGHT}
        await thinker.chat(messages=[*a_chat()["messages"], earlier, *a_chat("And?")["messages"]])
        assert f"<think>\n{THOUGHT}\n</think>\n\n{CONTENT}<|im_end|>" in thinker.prompt_text()


async def test_log_probabilities_of_thoughts_are_apart_from_those_of_the_content(thinker: Api) -> None:
    (choice,) = (await thinker.chat(logprobs=True, top_logprobs=1))["choices"]
    content, thought = choice["logprobs"]["content"], choice["logprobs"]["reasoning"]
    assert bytes(byte for entry in content for byte in entry["bytes"]).decode() == CONTENT
    assert bytes(byte for entry in thought for byte in entry["bytes"]).decode() == SAID.removesuffix(CONTENT)
    chunks = await thinker.stream(CHAT, logprobs=True, top_logprobs=1)
    parts = [chunk["choices"][0]["logprobs"] or {} for chunk in chunks]
    assert [entry for part in parts for entry in part.get("content", [])] == content
    assert [entry for part in parts for entry in part.get("reasoning", [])] == thought


async def test_a_character_of_several_tokens_after_a_thought_is_content() -> None:
    async with saying(QWEN_3, "<think>é</think>é!") as api:
        (choice,) = (await api.chat(logprobs=True))["choices"]
        content = choice["logprobs"]["content"]
        assert bytes(byte for entry in content for byte in entry["bytes"]).decode() == "é!"
        assert choice["message"]["reasoning"] == "é"


async def test_stop_strings_end_the_content_and_not_the_thought(thinker: Api) -> None:
    for fields in ({"stop": ["s."]}, {"stop": ["\n", "s."]}):
        (choice,) = (await thinker.chat(**fields))["choices"]
        assert (choice["message"]["reasoning"], choice["message"]["content"]) == (THOUGHT, "Ye")
        chunks = await thinker.stream(CHAT, **fields)
        assert (thought_of(chunks), text_of(chunks)) == (THOUGHT, "Ye")
        assert choice["finish_reason"] == chunks[-1]["choices"][0]["finish_reason"] == "stop"


async def test_max_tokens_never_leave_a_part_of_a_forced_mark_in_the_thought(thinker: Api) -> None:
    forced = "<think>\nHm</think>\nYes."
    async with saying(QWEN_3, forced) as api:
        for max_tokens in range(1, len(forced) + 1):
            fields: Body = {"thinking_token_budget": 3, "max_tokens": max_tokens}
            message = (await api.chat(**fields))["choices"][0]["message"]
            chunks = await api.stream(CHAT, **fields)
            assert message.get("reasoning", "") == thought_of(chunks)
            assert thought_of(chunks) in ("", "<", "H", "Hm")
            assert thought_of(chunks) == "Hm" or max_tokens < 10


async def test_calls_come_after_the_thought_and_not_from_it() -> None:
    call = HERMES.written([("weather", '{"city": "Rome"}')])
    async with saying(QWEN_3, f"<think>{call}</think>\n{call}", max_model_len=4096) as api:
        (choice,) = (await api.chat(tools=[WEATHER]))["choices"]
        assert choice["message"]["reasoning"] == call
        assert [one["function"]["name"] for one in choice["message"]["tool_calls"]] == ["weather"]
        assert choice["finish_reason"] == "tool_calls"
        chunks = await api.stream(CHAT, tools=[WEATHER])
        assert thought_of(chunks) == call
        assert sum(len(chunk["choices"][0]["delta"].get("tool_calls", [])) > 0 for chunk in chunks) > 1


async def test_several_choices_have_thoughts_of_their_own(qwen: ChatTemplate) -> None:
    async with open_api(says(SAID, "No thought."), chat_template=qwen) as api:
        choices = (await api.chat(n=2))["choices"]
        assert [choice["message"].get("reasoning") for choice in choices] == [THOUGHT, None]
        assert choices[1]["message"]["content"] == "No thought."


async def test_token_ids_are_those_of_thought_and_content(thinker: Api) -> None:
    (choice,) = (await thinker.chat(return_token_ids=True))["choices"]
    assert bytes(choice["token_ids"][:-1]).decode() == SAID
    chunks = await thinker.stream(CHAT, return_token_ids=True)
    assert [one for chunk in chunks for one in chunk["choices"][0].get("token_ids", [])] == choice["token_ids"]


async def test_a_response_has_an_item_for_the_thought(thinker: Api) -> None:
    whole = answered(await thinker.http.post(RESPONSES, json={"model": "fake", "input": "hi"}))
    thought, message = whole["output"]
    assert thought == {
        "id": thought["id"],
        "type": "reasoning",
        "summary": [],
        "content": [{"type": "reasoning_text", "text": THOUGHT}],
        "status": "completed",
    }
    assert message["content"][0]["text"] == CONTENT
    assert whole["usage"]["output_tokens_details"] == {"reasoning_tokens": NUM_THOUGHT_TOKENS}


async def test_a_streamed_response_has_events_for_the_thought(thinker: Api) -> None:
    events = await events_of(thinker)
    names = [event["type"].removeprefix("response.") for event in events]
    num_parts = names.count("reasoning_text.delta")
    assert names[2 : 7 + num_parts] == [
        "output_item.added",
        "content_part.added",
        *["reasoning_text.delta"] * num_parts,
        "reasoning_text.done",
        "content_part.done",
        "output_item.done",
    ]
    deltas = [event for event in events if event["type"] == "response.reasoning_text.delta"]
    assert "".join(event["delta"] for event in deltas) == THOUGHT
    assert {event["output_index"] for event in deltas} == {0}
    assert [item["type"] for item in events[-1]["response"]["output"]] == ["reasoning", "message"]
    final = next(event for event in events if event["type"] == "response.output_item.done")
    assert final["item"] == events[-1]["response"]["output"][0]


async def test_a_response_cut_inside_its_thought_is_incomplete(thinker: Api) -> None:
    body = {"model": "fake", "input": "hi", "max_output_tokens": 12}
    whole = answered(await thinker.http.post(RESPONSES, json=body))
    assert whole["status"] == "incomplete"
    (thought,) = whole["output"]
    assert (thought["content"][0]["text"], thought["status"]) == ("Hm.", "incomplete")


async def test_an_encoded_thought_goes_out_and_comes_back(thinker: Api) -> None:
    include = ["reasoning.encrypted_content"]
    whole = answered(await thinker.http.post(RESPONSES, json={"model": "fake", "input": "hi", "include": include}))
    item, message = whole["output"]
    assert "warnings" not in whole
    assert decoded_thought(item["encrypted_content"]) == THOUGHT
    back = [{"role": "user", "content": "hi"}, {**item, "content": None}, message, {"role": "user", "content": "And?"}]
    whole = answered(await thinker.http.post(RESPONSES, json={"model": "fake", "input": back}))
    assert f"<think>\n{THOUGHT}\n</think>" in thinker.prompt_text()
    assert "warnings" not in whole
    back[1]["encrypted_content"] = 5
    refused = await thinker.http.post(RESPONSES, json={"model": "fake", "input": back})
    assert refused.json()["error"]["param"] == "input[1].encrypted_content"


@pytest.mark.parametrize(
    "blob",
    ["gAAAA", "caravan1.", "caravan1.!!!", "caravan1.AAAA", "caravan1.é", encoded_thought("x" * (MAX_CHARACTERS + 1))],
)
def test_a_foreign_blob_is_no_thought(blob: str) -> None:
    assert decoded_thought(blob) is None
    assert decoded_thought(encoded_thought("é" * 1000)) == "é" * 1000


async def test_an_effort_of_a_response_reaches_the_template() -> None:
    async with saying(EFFORT, "Yes.") as api:
        body = {"model": "fake", "input": "hi", "reasoning": {"effort": "high", "summary": "auto"}}
        whole = answered(await api.http.post(RESPONSES, json=body))
        assert "Reasoning: high<" in api.prompt_text()
        assert whole["warnings"] == ["`reasoning.summary` has no effect on this server."]


async def test_the_official_client_reads_thoughts(thinker: Api) -> None:
    async with official(thinker) as client:
        response = await client.responses.create(model="fake", input="hi")
        assert response.output[0].type == "reasoning"
        assert response.output_text == CONTENT
        answer = await client.chat.completions.create(model="fake", messages=[{"role": "user", "content": "hi"}])
        assert answer.usage is not None
        assert isinstance(answer.usage.completion_tokens_details, openai.types.completion_usage.CompletionTokensDetails)
        assert answer.usage.completion_tokens_details.reasoning_tokens == NUM_THOUGHT_TOKENS
