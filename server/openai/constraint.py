"""Constraints: the form that a request prescribes for its text, as a grammar for the engine.

JSON comes as Python's json.dumps writes it, with a space after commas and colons and none else: free white space would
let a model write nothing else for ever.
"""

import asyncio
import json
from typing import Any

from llguidance import LLMatcher

from server.openai.closed_schema import closed
from server.openai.errors import invalid
from server.openai.response_format import JsonObjectFormat, JsonSchemaFormat
from server.openai.schemas import ChatRequest, CompletionRequest
from server.served_model import ServedModel


async def checked_grammar(served: ServedModel, request: CompletionRequest | ChatRequest) -> str:
    """Return the grammar that the request's text must keep to, empty if there is none.

    Raises ApiError if there is more than one, or if it cannot be compiled within the limits.
    """
    wanted: dict[str, str] = {}
    match request.response_format:
        case JsonObjectFormat():
            wanted["response_format"] = grammar_of_schema({"type": "object"})
        case JsonSchemaFormat(json_schema=named):
            wanted["response_format"] = grammar_of_schema(named.definition)
    if isinstance(request, ChatRequest) and request.required_tools:
        parameters = {tool.function.name: closed(tool.arguments_schema) for tool in request.required_tools}
        if any("x-guidance" in schema for schema in parameters.values()):
            raise invalid("`tools` cannot be used: a schema has the key x-guidance.", "tools")
        calls = served.call_format.grammar(parameters, allows_several=request.allows_several_calls)
        wanted["tools"] = LLMatcher.grammar_from_lark(calls)
    if request.regex is not None:
        wanted["regex"] = LLMatcher.grammar_from_regex(request.regex)
    if request.grammar is not None:
        wanted["grammar"] = LLMatcher.grammar_from_lark(request.grammar)
    if len(wanted) > 1:
        raise invalid(f"`{'` and `'.join(wanted)}` exclude each other; send one of them.", next(iter(wanted)))
    for param, grammar in wanted.items():
        if not served.tokenizer.eos_token_ids:
            raise invalid(f"`{param}` cannot be used: this model has no token that ends a text.", param)
        problem = await asyncio.to_thread(served.grammar_check.problem, grammar)
        if problem:
            raise invalid(f"`{param}` cannot be used: {problem}.", param)
        return grammar
    return ""


def grammar_of_schema(schema: dict[str, Any]) -> str:
    """Return the grammar of the JSON texts that a schema allows; raises ApiError if it tries to change the compiler."""
    if "x-guidance" in schema:
        raise invalid("`response_format` cannot be used: its schema has the key x-guidance.", "response_format")
    return LLMatcher.grammar_from_json_schema(
        json.dumps(closed(schema)), {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
    )
