"""Streamed messages: the events in their order, equal to the whole message wherever the text is cut, and their ends."""

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from caravan.server.generation.generation import Generation
from caravan.server.generation.request_limits import RequestLimits
from caravan.server.generation.served_model import ServedModel
from caravan.server.generation.text_stream import TextDelta
from caravan.server.http.sse import KEEP_ALIVE
from caravan.server.messages.chat_request import equivalent_chat
from caravan.server.messages.protocol.request import MessagesRequest
from caravan.server.messages.writer import MessageWriter, input_of
from caravan.server.openai.protocol.encoded_thought import decoded_thought
from caravan.server.openai.tool_calls.call_format import HERMES
from caravan.server.sandbox.chat_template import ChatTemplate
from tests.server.openai.api import Api, Body, open_api
from tests.server.openai.asgi import AsgiRequest
from tests.support.fakes import echoes, says
from tests.support.message_events import (
    MESSAGES,
    PLAIN,
    WEATHER,
    error_of,
    gathered,
    message_events,
    message_of,
    parsed_events,
    refused,
    shown,
)
from tests.support.thinking import QWEN_3
from tests.support.waiting import until

ROME = HERMES.written([("weather", '{"city": "Rom \u00e9 \U0001f600"}')])
TWO = HERMES.written([("weather", '{"city": "Rome"}'), ("weather", '{"city": "Oslo"}')])
TEXTS = ["Hello!", ROME, TWO, f"Let me see.\n{ROME}\nDone.", f"{ROME}\nText.\n{TWO}", "<tool_call> is a mark.", ""]
USAGE = {"prompt_tokens": 9, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 4}}


def written(deltas: list[tuple[str, str]], finish_reason: Any = "stop") -> tuple[Body, list[Body]]:
    """Return the whole message and the events that a writer makes of deltas, each a thought and a text."""
    body = MessagesRequest.model_validate(PLAIN | {"tools": [WEATHER]})
    model = cast(ServedModel, SimpleNamespace(chat_template=None))
    chat = equivalent_chat(model, body).request
    generation = cast(Generation, SimpleNamespace(usage=lambda: USAGE))
    writer, gatherer = (MessageWriter(body, chat, model, [1], [], fills_context=False) for _ in range(2))
    events = writer.begin()
    for number, (thought, text) in enumerate(deltas, start=1):
        end = finish_reason if number == len(deltas) else None
        delta = TextDelta(text, [1], [], [], end, 0, 0.0, 0.0, thought=thought)
        events += writer.delta(0, delta, generation)
        gatherer.add(0, delta, generation)
    events += writer.end(generation)
    whole = gatherer.whole(generation)
    content = [{name: getattr(block, name) for name in block.__struct_fields__} for block in whole.content]
    return {"content": content, "stop_reason": whole.stop_reason}, parsed_events(events.decode())


@pytest.mark.parametrize("finish_reason", ["stop", "length"])
@pytest.mark.parametrize("text", TEXTS)
def test_a_stream_is_the_whole_message_wherever_the_text_is_cut(text: str, finish_reason: str) -> None:
    thought = "Hm.\nOr \u00e9?"
    expected, _ = written([(thought, text)], finish_reason)
    cuts = [[(thought, text[:cut]), ("", text[cut:])] for cut in range(len(text) + 1)]
    cuts += [[(thought[:cut], ""), (thought[cut:], text)] for cut in range(1, len(thought))]
    cuts.append([*((one, "") for one in thought), *(("", one) for one in text), ("", "")])
    for deltas in cuts:
        whole, events = written(deltas, finish_reason)
        assert shown(whole) == shown(gathered(events)) == shown(expected), deltas
        assert whole["stop_reason"] == gathered(written(deltas, finish_reason)[1])["stop_reason"]


@pytest.mark.parametrize("length", range(len(ROME)))
def test_a_call_that_is_cut_off_is_the_same_whole_and_streamed(length: int) -> None:
    whole, events = written([("", one) for one in ROME[:length]] or [("", "")], "length")
    assert shown(gathered(events)) == shown(whole)
    assert whole["stop_reason"] == "max_tokens"


@pytest.mark.parametrize("text", TEXTS)
async def test_a_stream_of_bytes_is_the_whole_message(chat_ml: ChatTemplate, text: str) -> None:
    async with open_api(says(text), chat_template=chat_ml, max_model_len=4096) as api:
        whole = await message_of(api, tools=[WEATHER])
        streamed = gathered(await message_events(api, tools=[WEATHER]))
        assert shown(streamed) == shown(whole)
        for name in ("stop_reason", "stop_sequence", "usage"):
            assert streamed[name] == whole[name]
        assert all(block["id"].startswith("toolu_") for block in whole["content"] if block["type"] == "tool_use")


async def test_the_events_come_in_their_order() -> None:
    template = ChatTemplate(QWEN_3, "<s>", "</s>")
    text = f"<think>\nHm.\n</think>\n\nSo.\n{TWO}"
    async with open_api(says(text), chat_template=template, max_model_len=4096) as api:
        events = await message_events(api, tools=[WEATHER])
        whole = await message_of(api, tools=[WEATHER])
    template.close()
    assert [block["type"] for block in whole["content"]] == ["thinking", "text", "tool_use", "tool_use"]
    kinds = [event.get("delta", {}).get("type", event["type"]) for event in events]
    assert [kind for i, kind in enumerate(kinds) if kind != kinds[i - 1] or kind.endswith(("start", "stop"))] == [
        "message_start",
        *("content_block_start", "thinking_delta", "signature_delta", "content_block_stop"),
        *("content_block_start", "text_delta", "content_block_stop"),
        *("content_block_start", "input_json_delta", "content_block_stop") * 2,
        "message_delta",
        "message_stop",
    ]
    assert whole["content"][0]["thinking"] == "Hm."
    assert decoded_thought(whole["content"][0]["signature"]) == "Hm."
    assert whole["content"][3] == whole["content"][3] | {"name": "weather", "input": {"city": "Oslo"}}
    assert whole["stop_reason"] == "tool_use"


async def test_the_warnings_are_in_the_first_event(api: Api) -> None:
    events = await message_events(api, metadata={"user_id": "a"})
    assert events[0]["message"]["warnings"] == ["`metadata` has no effect on this server."]
    assert all("warnings" not in event for event in events[1:])


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("", {}),
        ('{"a": 1}', {"a": 1}),
        ('{"a": [1, {"b": "c', {"a": [1, {}]}),
        ('{"a": "\\ud83d"}', {"a": "\ufffd"}),
        ('{"a": "line\nbreak"}', {"a": "line\nbreak"}),
        ('{"a": 123456789012345678901234567890}', {"a": 123456789012345678901234567890}),
        ('{"a" "b"}', {"arguments": '{"a" "b"}'}),
        ("[1]", {"arguments": "[1]"}),
        ('{"a": ' * 300 + "1" + "}" * 300, {"arguments": '{"a": ' * 300 + "1" + "}" * 300}),
    ],
)
def test_any_arguments_are_an_object(arguments: str, expected: Body) -> None:
    assert input_of(arguments) == expected


async def test_an_engine_that_dies_in_a_stream_ends_it_with_an_error_event(chat_ml: ChatTemplate) -> None:
    async with open_api(echoes(), chat_template=chat_ml) as api:
        api.engine.dies_after = 4
        *events, error = await message_events(api, explain=True)
        assert events[0]["type"] == "message_start"
        assert error.pop("explanation")["choices"]
        assert error_of(error)["type"] == "overloaded_error"
        api.engine.dies_after = 0
        assert "engine stopped" in await refused(api, 503, stream=True)


async def test_an_error_before_the_first_token_of_a_stream_that_waits_is_its_only_event(chat_ml: ChatTemplate) -> None:
    async with open_api(chat_template=chat_ml, limits=RequestLimits(keep_alive_seconds=0.05)) as api:
        api.engine.released.clear()
        request = AsgiRequest(api.app, MESSAGES, PLAIN | {"stream": True})
        await until(lambda: KEEP_ALIVE.decode() in request.body)
        api.engine.fails_after = 0
        api.engine.released.set()
        await request.end()
        (error,) = parsed_events(request.body)
        assert error_of(error) == {
            "type": "api_error",
            "message": "The server failed to handle this request; the cause is in its log.",
        }


async def test_a_stream_that_waits_begins_with_comments(chat_ml: ChatTemplate) -> None:
    async with open_api(chat_template=chat_ml, limits=RequestLimits(keep_alive_seconds=0.05)) as api:
        api.engine.released.clear()
        request = AsgiRequest(api.app, MESSAGES, PLAIN | {"stream": True})
        await until(lambda: KEEP_ALIVE.decode() in request.body)
        api.engine.released.set()
        await request.end()
        assert shown(gathered(parsed_events(request.body))) == [{"type": "text", "text": "Hello!"}]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_ends_the_engines_work(chat_ml: ChatTemplate, stream: bool) -> None:
    async with open_api(lambda _, params: [97] * params.max_tokens, chat_template=chat_ml) as api:
        api.engine.seconds_per_token = 0.001
        request = AsgiRequest(api.app, MESSAGES, PLAIN | {"stream": stream})
        await until(lambda: api.engine.num_produced > 20)
        request.leave()
        await request.end()
        assert api.engine.aborted == [1]
        assert api.engine.num_running == 0


async def test_many_streams_at_once_are_their_own(chat_ml: ChatTemplate) -> None:
    async with open_api(echoes(), chat_template=chat_ml) as api:
        api.engine.seconds_per_token = 0.001
        texts = [f"number {index}" for index in range(20)]
        streams = await asyncio.gather(
            *(message_events(api, messages=[{"role": "user", "content": one}], max_tokens=40) for one in texts)
        )
    for text, events in zip(texts, streams, strict=True):
        (block,) = gathered(events)["content"]
        assert text in block["text"]
