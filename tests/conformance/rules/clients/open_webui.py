"""Open WebUI."""

import json

from tests.conformance.rules.structure import WEATHER
from tests.conformance.target import Body, Target, text_of

CHAT = "/v1/chat/completions"


def models_are_shown(target: Target) -> None:
    """Its list shows every model by `id` and `owned_by`, and no model twice."""
    entries = target.http.get("/v1/models").json()["data"]
    names = [entry["id"] for entry in entries]
    assert target.model in names
    assert len(set(names)) == len(names)
    assert all(isinstance(entry["owned_by"], str) for entry in entries)


def settings_of_a_chat_are_taken(target: Target) -> None:
    """The settings of a chat are taken together, and the seed among them repeats an answer."""
    settings: Body = {
        "messages": [
            {"role": "system", "content": "You are a helpful assistant."},
            {"role": "user", "content": "Name a colour."},
        ],
        "temperature": 0.8,
        "top_p": 0.9,
        "min_p": 0.01,
        "max_tokens": 24,
        "frequency_penalty": 0.1,
        "presence_penalty": 0.1,
        "seed": 42,
        "stop": ["\n\n\n"],
        "logit_bias": {"5": -100},
        "reasoning_effort": "low",
        "stream_options": {"include_usage": True},
    }
    first, second = (target.chunks_of(CHAT, settings) for _ in range(2))
    assert text_of(first) == text_of(second) != ""
    assert first[-1]["usage"]["completion_tokens"] <= 24


def titles_are_written(target: Target) -> None:
    """A title is asked for without a stream, beside a chat that it names, and comes as one text."""
    request = {
        "messages": [{"role": "user", "content": 'Answer with JSON: {"title": "..."} for this chat: Hello!'}],
        "stream": False,
        "max_completion_tokens": 40,
        "temperature": 0.1,
        "chat_id": "3f9b6c2e",
    }
    answer = target.answer_to(CHAT, request)
    assert isinstance(answer["choices"][0]["message"]["content"], str)
    assert any("chat_id" in warning for warning in answer.get("warnings", [])), "the field without effect is not named"


def deltas_of_calls_can_be_merged_by_index(target: Target) -> None:
    """A native call is put together by `index`; each of its parts has one, and the first its id and name."""
    request: Body = {
        "messages": [{"role": "user", "content": "How is the weather in Paris?"}],
        "tools": [WEATHER],
        "tool_choice": "required",
        "max_tokens": 120,
        "temperature": 0,
    }
    merged: dict[int, Body] = {}
    for chunk in target.chunks_of(CHAT, request):
        for part in chunk["choices"][0]["delta"].get("tool_calls") or []:
            call = merged.setdefault(part["index"], {"id": part.get("id"), "name": "", "arguments": ""})
            call["name"] += part["function"].get("name") or ""
            call["arguments"] += part["function"].get("arguments") or ""
    assert sorted(merged) == list(range(len(merged)))
    assert merged[0]["id"]
    assert merged[0]["name"] == "get_weather"
    assert isinstance(json.loads(merged[0]["arguments"]), dict)


def merged_calls_come_back(target: Target) -> None:
    """A merged call comes back with its `index`, and its result is read."""
    call = {
        "id": "call_1",
        "index": 0,
        "type": "function",
        "function": {"name": "get_weather", "arguments": '{"city": "Paris", "unit": "C"}'},
    }
    question: list[Body] = [{"role": "user", "content": "How is the weather in Paris?"}]
    request: Body = {"messages": question, "tools": [WEATHER], "tool_choice": "none", "max_tokens": 8}
    turns: list[Body] = [
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "21 degrees"},
    ]
    before = target.answer_to(CHAT, request)["usage"]["prompt_tokens"]
    after = target.answer_to(CHAT, request | {"messages": question + turns})["usage"]["prompt_tokens"]
    assert after > before


def documents_are_embedded(target: Target) -> None:
    """Pieces of a document are embedded in one request, in their order."""
    pieces = ["The sea is calm.", "The sky is blue."]
    both = target.answer_to("/v1/embeddings", {"input": pieces})["data"]
    for piece, entry in zip(pieces, both, strict=True):
        (alone,) = target.answer_to("/v1/embeddings", {"input": [piece]})["data"]
        assert alone["embedding"] == entry["embedding"]
