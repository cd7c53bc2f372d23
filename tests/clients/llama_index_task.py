"""LlamaIndex's OpenAILike."""

from typing import Any

from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike

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

    def model(api_base: str, *, max_retries: int) -> Any:
        return OpenAILike(
            model=MODEL,
            api_base=api_base,
            api_key="none",
            temperature=0,
            max_tokens=MAX_TOKENS,
            max_retries=max_retries,
            is_chat_model=True,
            is_function_calling_model=True,
            should_use_structured_outputs=True,
        )

    llm = model(url, max_retries=0)
    tools = [
        FunctionTool.from_defaults(lambda: None, name=tool.__name__, description=tool.__doc__, fn_schema=tool)
        for tool in TOOLS
    ]

    def calls(**options: Any) -> list[dict[str, Any]]:
        answer = llm.chat_with_tools(tools, user_msg=WEATHER_QUESTION, **options)
        selected = llm.get_tool_calls_from_response(answer)
        return [{"name": call.tool_name, "arguments": call.tool_kwargs} for call in selected]

    return {
        "structured": [llm.as_structured_llm(City).complete(CITY_QUESTION).raw.model_dump()],
        "whole": llm.complete(QUESTION).text,
        "streams": [[chunk.delta for chunk in llm.stream_complete(QUESTION)]],
        "required": calls(tool_required=True),
        "named": calls(tool_choice=GetTime.__name__),
        "retried": model(busy_url, max_retries=1).complete(QUESTION).text,
    }


if __name__ == "__main__":
    report(tasks)
