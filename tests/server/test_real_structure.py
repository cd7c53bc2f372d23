"""A whole server with the default model, asked for answers of a given form."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.server.running_server import RunningServer, running_server

pytestmark = pytest.mark.real_model

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 99},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 20}, "unit": {"enum": ["C", "F"]}},
            "required": ["city", "unit"],
            "additionalProperties": False,
        },
    },
}
QUESTION: Any = [{"role": "user", "content": "How is the weather in Paris?"}]


@pytest.fixture(scope="module")
def server(real_model_path: Path) -> Iterator[RunningServer]:
    with running_server(real_model_path, "--max-model-len", "1024", "--served-model-name", "smollm2") as running:
        yield running


@pytest.fixture
def client(server: RunningServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_a_schema_is_kept_to_the_last_bracket(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="smollm2",
        messages=[{"role": "user", "content": "Describe a person as JSON."}],
        response_format={"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON, "strict": True}},
        temperature=0,
    )
    assert answer.choices[0].finish_reason == "stop"
    person = json.loads(answer.choices[0].message.content or "")
    assert set(person) == {"name", "age"}
    assert 0 <= person["age"] <= 99


def test_a_regular_expression_is_kept_streamed(client: openai.OpenAI) -> None:
    stream = client.completions.create(
        model="smollm2", prompt="My number: ", max_tokens=40, stream=True, extra_body={"regex": "[0-9]{3}-[0-9]{4}!"}
    )
    number = "".join(chunk.choices[0].text for chunk in stream)
    assert number[3] + number[-1] == "-!"
    assert number.replace("-", "")[:-1].isdigit()


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_weather"}}])
def test_a_demanded_call_has_the_arguments_of_its_schema_streamed_and_not(client: openai.OpenAI, choice: Any) -> None:
    question = {"model": "smollm2", "messages": QUESTION, "tools": [WEATHER], "tool_choice": choice, "temperature": 0}
    answer = client.chat.completions.create(**question)
    assert answer.choices[0].finish_reason == "tool_calls"
    (call, *_) = answer.choices[0].message.tool_calls or []
    assert call.type == "function"
    assert call.function.name == "get_weather"
    arguments = json.loads(call.function.arguments)
    assert set(arguments) == {"city", "unit"}
    streamed, end = "", ""
    for chunk in client.chat.completions.create(**question, stream=True):
        for delta in chunk.choices[0].delta.tool_calls or []:
            if delta.index == 0 and delta.function:
                streamed += delta.function.arguments or ""
        end = chunk.choices[0].finish_reason or end
    assert json.loads(streamed) == arguments
    assert end == "tool_calls"


def test_a_response_is_parsed_into_the_model_it_was_asked_for(client: openai.OpenAI) -> None:
    response = client.responses.create(
        model="smollm2",
        input="Describe a person as JSON.",
        text={"format": {"type": "json_schema", "name": "person", "schema": PERSON, "strict": True}},
    )
    assert response.status == "completed"
    assert set(json.loads(response.output_text)) == {"name", "age"}


def test_best_of_returns_the_likeliest(client: openai.OpenAI) -> None:
    question: Any = {"model": "smollm2", "prompt": "The sea is", "max_tokens": 5, "seed": 3, "logprobs": 0}
    every = client.completions.create(**question, n=4)
    best = client.completions.create(**question, n=1, best_of=4)
    total = [sum(choice.logprobs.token_logprobs) / len(choice.logprobs.token_logprobs) for choice in every.choices]
    assert best.choices[0].text == every.choices[total.index(max(total))].text


def test_tokens_are_shown_and_put_together_again(server: RunningServer) -> None:
    shown = server.http.post("/tokenize", json={"prompt": "Zürich 😀", "return_pieces": True}).json()
    assert shown["count"] == len(shown["tokens"]) == len(shown["pieces"])
    assert bytes(byte for piece in shown["pieces"] for byte in piece["bytes"]).decode() == "Zürich 😀"
    assert server.http.post("/detokenize", json={"tokens": shown["tokens"]}).json()["text"] == "Zürich 😀"


def test_an_echo_has_the_same_log_probabilities_as_the_text_had_when_it_was_produced(client: openai.OpenAI) -> None:
    first = client.completions.create(model="smollm2", prompt="The sea is", max_tokens=8, temperature=0, logprobs=0)
    text, produced = first.choices[0].text, first.choices[0].logprobs
    echoed = client.completions.create(model="smollm2", prompt="The sea is" + text, max_tokens=0, logprobs=0, echo=True)
    assert echoed.choices[0].text == "The sea is" + text
    assert produced is not None
    assert echoed.choices[0].logprobs is not None
    read = echoed.choices[0].logprobs.token_logprobs
    assert read is not None
    assert read[-8:] == produced.token_logprobs  # to the last bit


def test_texts_of_one_meaning_have_nearer_embeddings_than_others(client: openai.OpenAI) -> None:
    texts = ["The cat sleeps on the sofa.", "A kitten is sleeping on the couch.", "def f(x):\n    return x ** 2"]
    answer = client.embeddings.create(model="smollm2", input=texts)  # the client asks for base64 by itself
    plain = client.embeddings.create(model="smollm2", input=texts, encoding_format="float")
    assert [vector.embedding for vector in plain.data] == [vector.embedding for vector in answer.data]
    cat, kitten, code = (vector.embedding for vector in answer.data)
    assert len(cat) == 576

    def nearness(one: list[float], other: list[float]) -> float:
        return sum(a * b for a, b in zip(one, other, strict=True))

    assert nearness(cat, cat) == pytest.approx(1, abs=1e-5)
    assert nearness(cat, kitten) > nearness(cat, code)
