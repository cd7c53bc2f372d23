"""instructor: objects from answers in a schema, from tool calls, and from the parts of a stream."""

from typing import Any

import instructor
import openai

from tests.clients.tasks import CITY_QUESTION, MAX_TOKENS, MODEL, City, report


def tasks(url: str, busy_url: str) -> dict[str, Any]:
    """Return what came of each task."""
    ask: dict[str, Any] = {
        "model": MODEL,
        "messages": [{"role": "user", "content": CITY_QUESTION}],
        "temperature": 0,
        "max_completion_tokens": MAX_TOKENS,
        "max_retries": 0,
    }
    client = openai.OpenAI(base_url=url, api_key="none", max_retries=0)
    patient = openai.OpenAI(base_url=busy_url, api_key="none", max_retries=1)
    modes = (instructor.Mode.JSON_SCHEMA, instructor.Mode.TOOLS, instructor.Mode.TOOLS_STRICT)
    by_schema, *by_tools = (instructor.from_openai(client, mode=mode) for mode in modes)
    partials = list(by_schema.chat.completions.create_partial(**ask, response_model=City))
    retried = instructor.from_openai(patient, mode=modes[0]).chat.completions.create(**ask, response_model=City)
    return {
        "structured": [by_schema.chat.completions.create(**ask, response_model=City).model_dump()],
        "partials": [partial.model_dump() for partial in partials],
        "required": [
            {"name": "City", "arguments": one.chat.completions.create(**ask, response_model=City).model_dump()}
            for one in by_tools
        ],
        "retried": retried.model_dump(),
    }


if __name__ == "__main__":
    report(tasks)
