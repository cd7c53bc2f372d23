"""pydantic-ai's OpenAIChatModel."""

import asyncio
import json
from typing import Any

import openai
from pydantic_ai import Agent, NativeOutput, ToolOutput
from pydantic_ai.messages import ModelResponse, ToolCallPart
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

from tests.clients.tasks import CITY_QUESTION, MAX_TOKENS, MODEL, QUESTION, WEATHER_QUESTION, City, GetTime, report


def tasks(url: str, busy_url: str) -> dict[str, Any]:
    """Return what came of each task."""

    def model(base_url: str, *, max_retries: int) -> OpenAIChatModel:
        client = openai.AsyncOpenAI(base_url=base_url, api_key="none", max_retries=max_retries)
        return OpenAIChatModel(MODEL, provider=OpenAIProvider(openai_client=client))

    async def ask() -> dict[str, Any]:
        settings: Any = {"temperature": 0, "max_tokens": MAX_TOKENS, "parallel_tool_calls": False}
        chat = model(url, max_retries=0)
        plain = Agent(chat, model_settings=settings)
        outputs: list[Any] = [NativeOutput(City), ToolOutput(City, name="City")]
        cities = [await Agent(chat, output_type=one, model_settings=settings).run(CITY_QUESTION) for one in outputs]
        named = await Agent(chat, output_type=ToolOutput(GetTime, name="GetTime"), model_settings=settings).run(
            WEATHER_QUESTION
        )
        async with plain.run_stream(QUESTION) as stream:
            pieces = [piece async for piece in stream.stream_text(delta=True, debounce_by=None)]
        patient = Agent(model(busy_url, max_retries=1), model_settings=settings)
        return {
            "structured": [city.output.model_dump() for city in cities],
            "whole": (await plain.run(QUESTION)).output,
            "streams": [pieces],
            "required": _calls(cities[1].all_messages()),
            "named": _calls(named.all_messages()),
            "retried": (await patient.run(QUESTION)).output,
        }

    return asyncio.run(ask())


def _calls(messages: list[Any]) -> list[dict[str, Any]]:
    parts = [part for message in messages if isinstance(message, ModelResponse) for part in message.parts]
    calls = [part for part in parts if isinstance(part, ToolCallPart)]
    return [
        {"name": call.tool_name, "arguments": json.loads(call.args) if isinstance(call.args, str) else call.args}
        for call in calls
    ]


if __name__ == "__main__":
    report(tasks)
