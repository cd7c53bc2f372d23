"""litellm."""

import json
from typing import Any

import litellm

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
    tool_of,
)


def tasks(url: str, busy_url: str) -> dict[str, Any]:
    """Return what came of each task."""

    def ask(question: str, *, api_base: str = url, num_retries: int = 0, **options: Any) -> Any:
        return litellm.completion(
            model=f"openai/{MODEL}",
            api_base=api_base,
            api_key="none",
            messages=[{"role": "user", "content": question}],
            temperature=0,
            max_tokens=MAX_TOKENS,
            num_retries=num_retries,
            **options,
        )

    tools = [tool_of(tool) for tool in TOOLS]
    named = {"type": "function", "function": {"name": GetTime.__name__}}
    return {
        "structured": [json.loads(_text(ask(CITY_QUESTION, response_format=City)))],
        "whole": _text(ask(QUESTION)),
        "streams": [[chunk.choices[0].delta.content or "" for chunk in ask(QUESTION, stream=True)]],
        "required": _calls(ask(WEATHER_QUESTION, tools=tools, tool_choice="required", parallel_tool_calls=False)),
        "named": _calls(ask(WEATHER_QUESTION, tools=tools, tool_choice=named)),
        "retried": _text(ask(QUESTION, api_base=busy_url, num_retries=1)),
    }


def _text(answer: Any) -> Any:
    return answer.choices[0].message.content


def _calls(answer: Any) -> list[dict[str, Any]]:
    functions = [call.function for call in answer.choices[0].message.tool_calls]
    return [{"name": function.name, "arguments": json.loads(function.arguments)} for function in functions]


if __name__ == "__main__":
    report(tasks)
