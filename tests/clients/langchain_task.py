"""LangChain's ChatOpenAI."""

from typing import Any

from langchain_openai import ChatOpenAI

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
    options = {"model": MODEL, "api_key": "none", "temperature": 0, "max_completion_tokens": MAX_TOKENS}
    chat = ChatOpenAI(base_url=url, max_retries=0, **options)
    methods = ("json_schema", "function_calling")
    required = chat.bind_tools(TOOLS, tool_choice="required", parallel_tool_calls=False).invoke(WEATHER_QUESTION)
    named = chat.bind_tools(TOOLS, tool_choice=GetTime.__name__).invoke(WEATHER_QUESTION)
    return {
        "structured": [
            chat.with_structured_output(City, method=method).invoke(CITY_QUESTION).model_dump() for method in methods
        ],
        "whole": chat.invoke(QUESTION).text,
        "streams": [[chunk.text for chunk in chat.stream(QUESTION)]],
        "required": [{"name": call["name"], "arguments": call["args"]} for call in required.tool_calls],
        "named": [{"name": call["name"], "arguments": call["args"]} for call in named.tool_calls],
        "retried": ChatOpenAI(base_url=busy_url, max_retries=1, **options).invoke(QUESTION).text,
    }


if __name__ == "__main__":
    report(tasks)
