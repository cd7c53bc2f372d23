"""A server with the default model: results that tests/conformance does not cover."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.support.running_server import RunningServer, running_server

pytestmark = pytest.mark.real_model


@pytest.fixture(scope="module")
def server(real_model_path: Path) -> Iterator[RunningServer]:
    with running_server(real_model_path, "--max-model-len", "1024", "--served-model-name", "smollm2") as running:
        yield running


@pytest.fixture
def client(server: RunningServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_best_of_returns_the_most_probable_choice(client: openai.OpenAI) -> None:
    question: Any = {"model": "smollm2", "prompt": "The sea is", "max_tokens": 5, "seed": 3, "logprobs": 0}
    every = client.completions.create(**question, n=4)
    best = client.completions.create(**question, n=1, best_of=4)
    total = [sum(choice.logprobs.token_logprobs) / len(choice.logprobs.token_logprobs) for choice in every.choices]
    assert best.choices[0].text == every.choices[total.index(max(total))].text


def test_an_echo_has_the_log_probabilities_of_the_generated_text(client: openai.OpenAI) -> None:
    first = client.completions.create(model="smollm2", prompt="The sea is", max_tokens=8, temperature=0, logprobs=0)
    text, produced = first.choices[0].text, first.choices[0].logprobs
    echoed = client.completions.create(model="smollm2", prompt="The sea is" + text, max_tokens=0, logprobs=0, echo=True)
    assert echoed.choices[0].text == "The sea is" + text
    assert produced is not None
    assert echoed.choices[0].logprobs is not None
    read = echoed.choices[0].logprobs.token_logprobs
    assert read is not None
    assert read[-8:] == produced.token_logprobs  # to the last bit


def test_similar_texts_have_similar_embeddings(client: openai.OpenAI) -> None:
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
