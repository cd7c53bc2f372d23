"""The official client: its helpers .parse() and .stream(), of chats and of responses."""

from typing import Any

import openai

from tests.clients.tasks import (
    CITY_QUESTION,
    MAX_TOKENS,
    MODEL,
    QUESTION,
    TOOLS,
    WEATHER_QUESTION,
    City,
    GetTime,
    report,
)


def tasks(url: str, busy_url: str) -> dict[str, Any]:
    """Return what came of each task."""
    client = openai.OpenAI(base_url=url, api_key="none", max_retries=0)
    common: dict[str, Any] = {"model": MODEL, "temperature": 0}
    chat = common | {"max_completion_tokens": MAX_TOKENS}
    response = common | {"max_output_tokens": MAX_TOKENS}
    ask = chat | {"messages": [{"role": "user", "content": QUESTION}]}
    ask_city = chat | {"messages": [{"role": "user", "content": CITY_QUESTION}]}
    tools = [openai.pydantic_function_tool(tool) for tool in TOOLS]
    ask_weather = chat | {"messages": [{"role": "user", "content": WEATHER_QUESTION}], "tools": tools}
    one_call: dict[str, Any] = {"tool_choice": "required", "parallel_tool_calls": False}  # or it calls for ever

    parsed = client.chat.completions.parse(**ask_city, response_format=City).choices[0].message.parsed
    newer = client.responses.parse(**response, input=CITY_QUESTION, text_format=City).output_parsed
    with client.chat.completions.stream(**ask_city, response_format=City) as city_stream:
        streamed = city_stream.get_final_completion().choices[0].message.parsed

    with client.chat.completions.stream(**ask) as stream:
        chunks = [event.delta for event in stream if event.type == "content.delta"]
    with client.responses.stream(**response, input=QUESTION) as newer_stream:
        newer_chunks = [event.delta for event in newer_stream if event.type == "response.output_text.delta"]

    calls = client.chat.completions.parse(**ask_weather, **one_call).choices[0].message.tool_calls
    named: Any = {"type": "function", "function": {"name": GetTime.__name__}}
    with client.chat.completions.stream(**ask_weather, tool_choice=named) as call_stream:
        streamed_calls = call_stream.get_final_completion().choices[0].message.tool_calls

    patient = openai.OpenAI(base_url=busy_url, api_key="none", max_retries=1)
    return {
        "structured": [city and city.model_dump() for city in (parsed, newer, streamed)],
        "whole": client.chat.completions.create(**ask).choices[0].message.content,
        "streams": [chunks, newer_chunks],
        "required": [_call(call) for call in calls or []],
        "named": [_call(call) for call in streamed_calls or []],
        "retried": patient.chat.completions.create(**ask).choices[0].message.content,
    }


def _call(call: Any) -> dict[str, Any]:
    return {"name": call.function.name, "arguments": call.function.parsed_arguments.model_dump()}


if __name__ == "__main__":
    report(tasks)
