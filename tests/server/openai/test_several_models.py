"""Two models behind one application, each with an engine of its own."""

import asyncio
import re
from collections.abc import AsyncIterator

import httpx
import pytest

from caravan.server.app import AppParts, create_app
from caravan.server.engine.listener import EngineListeners
from caravan.server.generation.admission import Admission
from caravan.server.generation.served_model import ServedModel
from caravan.server.http.concurrency_limit import ConcurrencyLimit
from caravan.server.observe.http_record import HttpRecord
from caravan.server.observe.metrics import Metrics
from caravan.server.observe.request_history import RequestHistory
from caravan.server.operations.live_view import LiveView
from caravan.server.sandbox.chat_template import ChatTemplate
from tests.server.openai.api import CHAT, COMPLETIONS
from tests.support.fakes import FakeEngineClient, byte_tokenizer, says


class TwoModels:
    """An application with the models red and green."""

    def __init__(self, template: ChatTemplate) -> None:
        self.engines = [FakeEngineClient(says("I am red.")), FakeEngineClient(says("I am green."))]
        self.records: list[HttpRecord] = []
        self.limit = ConcurrencyLimit(100)
        self.live_views = [LiveView(engine.subscribe) for engine in self.engines]
        self.models = [self._model(*one, template) for one in zip(("red", "green"), self.engines, strict=True)]
        app = create_app(
            AppParts(
                models=self.models,
                live_views=self.live_views,
                version="1.2.3",
                concurrency_limit=self.limit,
                on_response=self.records.append,
            )
        )
        self.app = app
        self.http = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")

    def _model(self, name: str, engine: FakeEngineClient, template: ChatTemplate) -> ServedModel:
        metrics = Metrics(name, engine.config)
        history = RequestHistory()
        engine.listener = EngineListeners([metrics, history])
        return ServedModel(
            name=name,
            aliases=(f"org/{name}",),
            max_model_len=512 if name == "red" else 256,
            engine=engine,
            tokenizer=byte_tokenizer(),
            chat_template=template,
            metrics=metrics,
            admission=Admission(engine.config, metrics),
            history=history,
        )

    def samples(self, text: str, name: str) -> dict[str, float]:
        """Return the values of a series without other labels, by model."""
        found = re.findall(rf'^caravan_{name}{{model_name="(\w+)"}} (\S+)$', text, re.MULTILINE)
        return {model: float(value) for model, value in found}


@pytest.fixture
async def two(chat_ml: ChatTemplate) -> AsyncIterator[TwoModels]:
    models = TwoModels(chat_ml)
    async with models.http:
        yield models


async def test_the_models_are_listed_with_their_states(two: TwoModels) -> None:
    two.engines[1].state = "asleep"
    entries = (await two.http.get("/v1/models")).json()["data"]
    assert [(entry["id"], entry["root"], entry["max_model_len"], entry["state"]) for entry in entries] == [
        ("red", "red", 512, "loaded"),
        ("org/red", "red", 512, "loaded"),
        ("green", "green", 256, "asleep"),
        ("org/green", "green", 256, "asleep"),
    ]
    assert (await two.http.get("/v1/models/org/green")).json() == entries[3]
    assert (await two.http.get("/v1/models/blue")).status_code == 404


@pytest.mark.parametrize(("name", "index"), [("red", 0), ("org/red", 0), ("green", 1), ("org/green", 1)])
async def test_each_request_reaches_the_engine_of_its_model(name: str, index: int, two: TwoModels) -> None:
    completion = {"model": name, "prompt": "hi", "max_tokens": 20}
    chat = {"model": name, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 20}
    expected = ["I am red.", "I am green."][index]
    answer = (await two.http.post(COMPLETIONS, json=completion)).json()
    assert answer["choices"][0]["text"] == expected
    assert answer["model"] == name
    streamed = await two.http.post(COMPLETIONS, json=completion | {"stream": True})
    assert re.findall(r'"text":"(.*?)"', streamed.text)[0] == expected[0]
    assert (await two.http.post(CHAT, json=chat)).json()["choices"][0]["message"]["content"] == expected
    response = (await two.http.post("/v1/responses", json={"model": name, "input": "hi"})).json()
    assert response["output"][0]["content"][0]["text"] == expected
    await two.http.post("/v1/embeddings", json={"model": name, "input": "hi"})
    assert [len(engine.submitted) for engine in two.engines] == ([5, 0] if index == 0 else [0, 5])
    text = (await two.http.get("/metrics")).text
    other = "green" if index == 0 else "red"
    model = "red" if index == 0 else "green"
    assert two.samples(text, "generation_tokens_total")[other] == 0
    assert f'caravan_http_requests_total{{model_name="{model}",route="/v1/embeddings",status="200"}} 1.0' in text
    assert [record.generation.model_name for record in two.records if record.generation is not None] == [model] * 5


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (COMPLETIONS, {"prompt": "hi"}),
        (CHAT, {"messages": [{"role": "user", "content": "hi"}]}),
        ("/v1/responses", {"input": "hi"}),
        ("/v1/embeddings", {"input": "hi"}),
        ("/tokenize", {"prompt": "hi"}),
        ("/detokenize", {"tokens": [1]}),
        ("/apply-template", {"messages": [{"role": "user", "content": "hi"}]}),
    ],
)
async def test_an_unknown_model_is_not_found(path: str, body: dict[str, object], two: TwoModels) -> None:
    response = await two.http.post(path, json=body | {"model": "blue"})
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "model_not_found"


async def test_the_tokenizer_is_that_of_the_named_model_or_of_the_first(two: TwoModels) -> None:
    for name, length in (("green", 256), ("red", 512), (None, 512)):
        body = {"prompt": "hi"} | ({} if name is None else {"model": name})
        assert (await two.http.post("/tokenize", json=body)).json()["max_model_len"] == length
        query = {} if name is None else {"model": name}
        assert (await two.http.get("/tokenizer_info", params=query)).json()["model_max_length"] == length
    assert (await two.http.get("/tokenizer_info", params={"model": "blue"})).status_code == 404


async def test_a_request_is_explained_whichever_model_had_it(two: TwoModels) -> None:
    for name in ("red", "green"):
        answer = (await two.http.post(COMPLETIONS, json={"model": name, "prompt": "hi", "max_tokens": 20})).json()
        explanation = (await two.http.get(f"/v1/requests/{answer['id']}/explain")).json()
        assert explanation["id"] == answer["id"]
    assert (await two.http.get("/v1/requests/cmpl-1/explain")).status_code == 404


async def test_the_server_is_ready_while_one_of_the_models_is(two: TwoModels) -> None:
    two.engines[0].is_ready = False
    assert (await two.http.get("/readyz")).status_code == 200
    text = (await two.http.get("/metrics")).text
    assert two.samples(text, "ready") == {"red": 0, "green": 1}
    assert (await two.http.post(COMPLETIONS, json={"model": "red", "prompt": "hi"})).status_code == 503
    two.engines[1].is_ready = False
    assert (await two.http.get("/readyz")).status_code == 503
    two.engines[1].is_ready = True
    two.limit.close()
    assert (await two.http.get("/readyz")).status_code == 503


async def test_the_metrics_have_each_family_once_with_the_series_of_all_models(two: TwoModels) -> None:
    text = (await two.http.get("/metrics")).text
    families = re.findall(r"^# TYPE (\S+)", text, re.MULTILINE)
    assert len(families) == len(set(families))
    assert two.samples(text, "num_requests_running") == {"red": 0, "green": 0}
    assert len(re.findall(r"^process_cpu_seconds_total ", text, re.MULTILINE)) == 1
    assert len(re.findall(r"^python_info", text, re.MULTILINE)) == 1
    openmetrics = await two.http.get("/metrics", headers={"accept": "application/openmetrics-text; version=1.0.0"})
    assert openmetrics.text.endswith("# EOF\n")
    again = (await two.http.get("/metrics")).text
    assert len(re.findall(r"^python_info", again, re.MULTILINE)) == 1


async def test_the_live_view_is_that_of_the_named_model_or_of_the_first(two: TwoModels) -> None:
    async def subscribed(query: dict[str, str]) -> list[float]:
        task = asyncio.create_task(two.http.get("/v1/engine/events", params=query))
        await asyncio.sleep(0.05)
        periods = [engine.snapshot_period_seconds for engine in two.engines]
        for live_view in two.live_views:
            for subscriber in [*live_view._subscribers]:
                subscriber.put(None)
        await task
        return periods

    assert await subscribed({}) == [0.25, 0]
    assert await subscribed({"model": "org/green"}) == [0, 0.25]
    assert (await two.http.get("/v1/engine/events", params={"model": "blue"})).status_code == 404


async def test_the_api_description_has_the_names_of_all_models(two: TwoModels) -> None:
    document = (await two.http.get("/openapi.json")).json()
    model = document["components"]["schemas"]["CompletionRequest"]["properties"]["model"]
    assert model["enum"] == ["red", "org/red", "green", "org/green"]
