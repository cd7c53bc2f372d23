"""Ollama's official client reads every answer: chats, texts, tools, formats, embeddings and the list of models."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import ollama
import pytest
from pydantic import BaseModel

from caravan.server.http.api_keys import ApiKeys
from caravan.server.openai.tool_calls.call_format import HERMES
from caravan.server.sandbox.chat_template import ChatTemplate
from tests.server.openai.api import Api, open_api
from tests.support.fakes import says
from tests.support.thinking import QWEN_3

CALL = HERMES.written([("weather", '{"city": "Paris"}')])
HI = [{"role": "user", "content": "hi"}]


@asynccontextmanager
async def official(api: Api, **headers: str) -> AsyncIterator[ollama.AsyncClient]:
    """Open a client of an application."""
    async with ollama.AsyncClient("http://test", headers=headers, transport=httpx.ASGITransport(api.app)) as client:
        yield client


@pytest.fixture
async def client(api: Api) -> AsyncIterator[ollama.AsyncClient]:
    async with official(api) as opened:
        yield opened


async def test_a_chat_whole_and_streamed(client: ollama.AsyncClient) -> None:
    answer = await client.chat("fake", HI, options={"temperature": 0, "num_ctx": 512})
    assert (answer.message.role, answer.message.content) == ("assistant", "Hello!")
    assert (answer.done, answer.done_reason, answer.eval_count) == (True, "stop", 7)
    parts = [part async for part in await client.chat("fake", HI, stream=True)]
    assert "".join(part.message.content or "" for part in parts) == "Hello!"
    assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]
    assert parts[-1].total_duration


async def test_a_text_whole_and_streamed(client: ollama.AsyncClient, api: Api) -> None:
    answer = await client.generate("fake", "hi", system="Be kind.")
    assert answer.response == "Hello!"
    assert "Be kind." in api.prompt_text()
    parts = [part async for part in await client.generate("fake", "hi", raw=True, stream=True, logprobs=True)]
    assert "".join(part.response or "" for part in parts) == "Hello!"
    assert [entry.token for part in parts for entry in part.logprobs or []] == [*"Hello!"]
    assert api.prompt_text() == "hi"
    assert (await client.generate("fake")).done_reason == "load"


async def test_a_function_is_called_and_its_result_read(chat_ml: ChatTemplate) -> None:
    def weather(city: str) -> str:
        """The weather of a city.

        Args:
            city: Its name.
        """
        return f"rain in {city}"

    async with (
        open_api(says(CALL, "It rains."), chat_template=chat_ml, max_model_len=4096) as api,
        official(api) as client,
    ):
        messages: list[ollama.Message] = [ollama.Message(role="user", content="Weather?")]
        answer = await client.chat("fake", messages, tools=[weather])
        (call,) = answer.message.tool_calls or []
        assert (call.function.name, call.function.arguments) == ("weather", {"city": "Paris"})
        result = ollama.Message(role="tool", content=weather(**call.function.arguments), tool_name="weather")
        final = await client.chat("fake", [*messages, answer.message, result], tools=[weather])
        assert final.message.content == "It rains."
        assert "rain in Paris" in api.prompt_text()
        assert '"city": "Paris"' in api.prompt_text()
        streamed = [part async for part in await client.chat("fake", messages, tools=[weather], stream=True)]
        calls = [one for part in streamed for one in part.message.tool_calls or []]
        assert [one.function.arguments for one in calls] == [{"city": "Paris"}]


async def test_a_thought_is_beside_the_content() -> None:
    template = ChatTemplate(QWEN_3, "<s>", "</s>")
    try:
        async with (
            open_api(says("<think>\nHm.\n</think>\n\nYes."), chat_template=template) as api,
            official(api) as client,
        ):
            message = (await client.chat("fake", HI, think=True)).message
            assert (message.thinking, message.content) == ("Hm.", "Yes.")
            answer = await client.generate("fake", "hi", think="low")
            assert (answer.thinking, answer.response) == ("Hm.", "Yes.")
    finally:
        template.close()


async def test_a_format_is_a_schema(client: ollama.AsyncClient, api: Api) -> None:
    class City(BaseModel):
        name: str

    await client.chat("fake", HI, format=City.model_json_schema())
    await client.generate("fake", "hi", format="json")
    assert all(api.engine.grammars)
    assert "name" in json.dumps(api.engine.grammars[0])


async def test_embeddings(client: ollama.AsyncClient) -> None:
    answer = await client.embed("fake", ["a", "bc"])
    assert [len(vector) for vector in answer.embeddings] == [3, 3]
    assert (await client.embeddings("fake", "a")).embedding == answer.embeddings[0]


async def test_models_are_listed_shown_and_running(client: ollama.AsyncClient) -> None:
    (first, _) = (await client.list()).models
    assert first.model == "fake:latest"
    shown = await client.show(first.model)
    assert shown.modelinfo is not None
    assert shown.modelinfo["llama.context_length"] == 512
    assert shown.capabilities == ["completion", "tools"]
    (running,) = (await client.ps()).models
    assert (running.model, running.context_length) == ("fake:latest", 512)
    assert (await client.chat(first.model, HI)).message.content == "Hello!"


async def test_errors_are_messages(client: ollama.AsyncClient, api: Api) -> None:
    with pytest.raises(ollama.ResponseError, match=r"The model `none` does not exist\.") as caught:
        await client.chat("none", HI)
    assert caught.value.status_code == 404
    with pytest.raises(ollama.ResponseError, match="no such route"):
        await client.pull("fake")
    api.engine.dies_after = 2
    api.engine.seconds_per_token = 0.001
    with pytest.raises(ollama.ResponseError, match="engine stopped"):
        [part async for part in await client.chat("fake", HI, stream=True)]


async def test_the_key_is_a_bearer_token(chat_ml: ChatTemplate) -> None:
    async with open_api(chat_template=chat_ml, keys=ApiKeys({"alice": "secret-of-alice"})) as api:
        async with official(api) as client:
            with pytest.raises(ollama.ResponseError, match="The API key is missing or invalid"):
                await client.list()
        async with official(api, authorization="Bearer secret-of-alice") as client:
            assert (await client.chat("fake", HI)).message.content == "Hello!"
