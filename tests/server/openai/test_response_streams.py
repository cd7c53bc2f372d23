"""Streamed responses: the events make the whole response wherever the text is cut, with calls of custom tools, too."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from caravan.server.generation.generation import Generation
from caravan.server.generation.served_model import ServedModel
from caravan.server.generation.text_stream import TextDelta
from caravan.server.openai.protocol.chat import ChatRequest
from caravan.server.openai.protocol.custom_input import arguments_of_input
from caravan.server.openai.protocol.responses import ResponsesRequest
from caravan.server.openai.response_writer import ResponseWriter
from caravan.server.openai.tool_calls.call_format import HERMES
from caravan.server.sandbox.chat_template import ChatTemplate
from tests.server.openai.api import Body, answered, open_api
from tests.support.fakes import says
from tests.support.message_events import parsed_events
from tests.support.responses_events import RESPONSES, events_of

WEATHER = {"type": "function", "name": "weather", "parameters": {"type": "object", "properties": {}}, "strict": False}
TOOLS = [WEATHER, {"type": "custom", "name": "patch"}]
ROME = HERMES.written([("weather", '{"city": "Rom \u00e9 \U0001f600"}')])
PATCH = HERMES.written([("patch", arguments_of_input('+ "a"\n\\ \u00e9 \U0001f600'))])
TEXTS = ["Hello!", ROME, PATCH, f"See.\n{PATCH}\n{ROME}", "<tool_call> is a mark.", ""]
USAGE = {"prompt_tokens": 9, "completion_tokens": 5, "total_tokens": 14, "prompt_tokens_details": {"cached_tokens": 4}}
# The deltas of a stream, the event that ends them, and the field of the item that both fill.
DELTAS = {
    "response.output_text.delta": ("response.output_text.done", "text"),
    "response.reasoning_text.delta": ("response.reasoning_text.done", "text"),
    "response.function_call_arguments.delta": ("response.function_call_arguments.done", "arguments"),
    "response.custom_tool_call_input.delta": ("response.custom_tool_call_input.done", "input"),
}


def shown(output: list[Body]) -> list[Any]:
    """Return the items of an output without the ids that differ between responses."""
    return [{name: item[name] for name in item if name not in {"id", "call_id"}} for item in output]


def gathered(events: list[Body]) -> list[Body]:
    """Return the finished items of a stream, whose deltas must add up to their texts."""
    texts: dict[tuple[str, int], str] = {}
    for event in events:
        if event["type"] in DELTAS:
            key = DELTAS[event["type"]][0], event["output_index"]
            texts[key] = texts.get(key, "") + event["delta"]
    for kind, field in DELTAS.values():
        for event in events:
            if event["type"] == kind:
                assert texts.pop((kind, event["output_index"]), "") == event[field]
    assert not texts
    items = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert items == events[-1]["response"]["output"]
    return items


def written(deltas: list[tuple[str, str]], finish_reason: Any) -> list[Body]:
    """Return the items of the stream that a writer makes of deltas, each a thought and a text."""
    body = ResponsesRequest.model_validate({"model": "fake", "input": "hi", "tools": TOOLS})
    model = cast(ServedModel, SimpleNamespace(chat_template=None))
    generation = cast(Generation, SimpleNamespace(usage=lambda: USAGE))
    writer = ResponseWriter(body, ChatRequest.model_validate(body.as_chat()), model, [1])
    events = writer.begin()
    for number, (thought, text) in enumerate(deltas, start=1):
        end = finish_reason if number == len(deltas) else None
        events += writer.delta(0, TextDelta(text, [1], [], [], end, 0, 0.0, 0.0, thought=thought), generation)
    events += writer.end(generation)
    return gathered(parsed_events(events.decode()))


@pytest.mark.parametrize("finish_reason", ["stop", "length"])
@pytest.mark.parametrize("text", TEXTS)
def test_the_events_make_the_same_items_wherever_the_text_is_cut(text: str, finish_reason: str) -> None:
    thought = "Hm.\nOr \u00e9?"
    expected = shown(written([(thought, text)], finish_reason))
    cuts = [[(thought, text[:cut]), ("", text[cut:])] for cut in range(len(text) + 1)]
    cuts += [[(thought[:cut], ""), (thought[cut:], text)] for cut in range(1, len(thought))]
    cuts.append([*((one, "") for one in thought), *(("", one) for one in text), ("", "")])
    for deltas in cuts:
        assert shown(written(deltas, finish_reason)) == expected, deltas


@pytest.mark.parametrize("text", TEXTS)
async def test_a_stream_of_bytes_is_the_whole_response(chat_ml: ChatTemplate, text: str) -> None:
    async with open_api(says(text), chat_template=chat_ml, max_model_len=4096) as api:
        body = {"model": "fake", "input": "hi", "tools": TOOLS}
        whole = answered(await api.http.post(RESPONSES, json=body))
        events = await events_of(api, tools=TOOLS)
        assert shown(gathered(events)) == shown(whole["output"])
        assert events[-1]["response"]["usage"] == whole["usage"]
